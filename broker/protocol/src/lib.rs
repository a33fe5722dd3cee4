//! The port-representor allocation protocol: identities, messages, codec and the binding state machine.
//!
//! Nothing here does I/O and nothing reads a clock: every decision is a function of state, input and `now`.
//! The broker, the DPU and the host shim all run this code. `../PROTOCOL.md` is the prose for it.
#![forbid(unsafe_code)]

pub mod binding;
pub mod card;
pub mod card_side;
pub mod codec;
pub mod desired;
pub mod id;
pub mod inquiry;
pub mod link;
pub mod operation;
pub mod refusal;
pub mod token;
