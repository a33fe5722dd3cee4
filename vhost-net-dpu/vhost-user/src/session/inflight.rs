//! The region in which rings note what is in flight (vhost-user, "Inflight I/O tracking").

use std::fs::File;

use outboard_controls::{Check, on};
use outboard_ring::{InflightRegion, RingFormat};
use vhost::vhost_user::message::FrontendReq;

use super::{Reply, Session};
use crate::{error::SessionError, request::InflightShape};

impl Session<'_> {
    /// GET_INFLIGHT_FD: a new region. The front-end keeps it and gives it to us, or to who comes after us.
    pub(super) fn get_inflight(&self, kind: FrontendReq, shape: InflightShape) -> Result<Reply, SessionError> {
        self.check_shape(kind, shape)?;
        let InflightShape {
            queue_count,
            queue_size,
            body_len,
        } = shape;
        let file = InflightRegion::create(self.format(), queue_count, queue_size)?;
        let len = InflightRegion::len_needed(self.format(), queue_count, queue_size);
        let mut body: Vec<u8> = [len, 0].into_iter().flat_map(u64::to_ne_bytes).collect();
        body.extend([queue_count, queue_size].into_iter().flat_map(u16::to_ne_bytes));
        // Some front-ends have the padding in their messages and want it back.
        body.resize(body_len, 0);
        Ok(Reply::WithFile(body, file))
    }

    /// SET_INFLIGHT_FD. Rings look at it when they start.
    pub(super) fn set_inflight(
        &mut self,
        kind: FrontendReq,
        file: &File,
        offset: u64,
        len: u64,
        shape: InflightShape,
    ) -> Result<(), SessionError> {
        self.check_shape(kind, shape)?;
        if self.any_running() {
            return Err(SessionError::InflightInUse);
        }
        let region = InflightRegion::map(file, offset, len, self.format(), (shape.queue_count, shape.queue_size))?;
        // A split ring that is used in order has its position in memory.
        let needed = self.device.finishes_out_of_order() || self.format() == RingFormat::Packed;
        self.inflight = needed.then_some(region);
        Ok(())
    }

    /// The driver of a stopped queue was reset: by RESET_DEVICE, or since the queue is to go on elsewhere than where it
    /// stopped. What it had left unanswered, being broken, was of the ring before, and would be looked for in the next.
    pub(super) fn forget_inflight(&self, index: u16) -> Result<(), SessionError> {
        match self.inflight.as_ref().map(|region| region.queue(index)) {
            Some(Ok(log)) => Ok(log.forget()?),
            // A region that lacks the queue is refused when the queue starts.
            Some(Err(_)) | None => Ok(()),
        }
    }

    fn check_shape(&self, kind: FrontendReq, shape: InflightShape) -> Result<(), SessionError> {
        if shape.queue_count > self.queue_count() && on(Check::InflightRegion) {
            return Err(SessionError::Value {
                request: kind,
                field: "number of queues",
                value: shape.queue_count.into(),
            });
        }
        Ok(())
    }
}
