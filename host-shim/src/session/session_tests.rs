//! Sessions against a DPU that the test plays: negotiation, refusals, replay, absence.

#[path = "tests/absence.rs"]
mod absence;
#[path = "tests/bounds.rs"]
mod bounds;
#[path = "tests/model_dpu.rs"]
mod model_dpu;
#[path = "tests/negotiation.rs"]
mod negotiation;
#[path = "tests/packed.rs"]
mod packed;
#[path = "tests/replay_equals.rs"]
mod replay_equals;
#[path = "tests/world.rs"]
mod world;
