//! Every mode, in both socket roles, against back-ends in this process; and back-ends that are at fault.

mod backend;
mod blk;
mod net;
