//! The broker as its peers see it: operators over a unix socket and over TLS, cards over TLS, and the daemon itself.

mod api;
mod cards;
mod daemon;
mod groups;
mod inquiry;
mod support;
