//! From a frame to a request whose form is right. What it may do is the session's matter.

use std::{fs::File, os::fd::OwnedFd};

use outboard_controls::{Check, on};
use outboard_ring::RegionSpec;
use vhost::vhost_user::message::FrontendReq;

use crate::{error::SessionError, frame::Frame};

/// Bits of the payload of SET_VRING_KICK, CALL and ERR (vhost-user, "A vring descriptor").
const VRING_INDEX_MASK: u64 = 0xff;
const VRING_NO_FD: u64 = 0x100;
/// The only flag of SET_VRING_ADDR: log writes to the used ring.
const VRING_F_LOG: u32 = 1;
/// Lengths of payloads in bytes.
const REGION_LEN: usize = 32;
const CONFIG_HEADER_LEN: usize = 12;
/// The description of an in-flight region with the padding that C and Rust put behind its last two fields.
const INFLIGHT_PADDED_LEN: usize = 24;

/// A request. Queue indices are as they came.
#[derive(Debug)]
pub(crate) enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<RegionSpec>),
    SetLogBase {
        len: u64,
        offset: u64,
        file: File,
    },
    SetVringNum {
        index: u32,
        size: u32,
    },
    SetVringAddr {
        index: u32,
        addr: VringAddr,
        /// Under which guest-physical address writes to the used ring are logged, if they are.
        log_used: Option<u64>,
    },
    SetVringBase {
        index: u32,
        base: u32,
    },
    GetVringBase {
        index: u32,
    },
    SetVringKick {
        index: u32,
        fd: Option<OwnedFd>,
    },
    SetVringCall {
        index: u32,
        fd: Option<OwnedFd>,
    },
    SetVringErr {
        index: u32,
        fd: Option<OwnedFd>,
    },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable {
        index: u32,
        enable: u32,
    },
    GetConfig {
        offset: u32,
        len: u32,
        flags: u32,
    },
    SetConfig {
        offset: u32,
        flags: u32,
        data: Vec<u8>,
    },
    SetMtu(u64),
    SetBackendReqFd(OwnedFd),
    GetInflightFd(InflightShape),
    SetInflightFd {
        len: u64,
        offset: u64,
        shape: InflightShape,
        file: File,
    },
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(RegionSpec),
    RemMemReg {
        guest_phys_addr: u64,
        len: u64,
        user_addr: u64,
    },
}

/// What an in-flight region is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InflightShape {
    pub(crate) queue_count: u16,
    pub(crate) queue_size: u16,
    /// Length of the message's body in bytes, which a reply has too.
    pub(crate) body_len: usize,
}

/// Where the parts of a ring are in the VMM's own address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VringAddr {
    pub(crate) desc: u64,
    pub(crate) used: u64,
    pub(crate) avail: u64,
}

impl Request {
    /// Parse a frame of a known kind.
    pub(crate) fn parse(kind: FrontendReq, frame: Frame) -> Result<Self, SessionError> {
        let Frame { body, descriptors, .. } = frame;
        let mut body = Body {
            kind,
            body: &body,
            at: 0,
        };
        let mut descriptors = Descriptors { kind, descriptors };
        let request = match kind {
            FrontendReq::GET_FEATURES => Self::GetFeatures,
            FrontendReq::SET_FEATURES => Self::SetFeatures(body.u64()?),
            FrontendReq::SET_OWNER => Self::SetOwner,
            FrontendReq::RESET_OWNER => Self::ResetOwner,
            FrontendReq::SET_MEM_TABLE => {
                let (count, _padding) = (body.u32()? as usize, body.u32()?);
                descriptors.expect(count)?;
                body.expect(8 + REGION_LEN * count)?;
                let fds = std::mem::take(&mut descriptors.descriptors);
                let regions = fds.into_iter().map(|fd| body.region(fd)).collect::<Result<_, _>>()?;
                Self::SetMemTable(regions)
            }
            FrontendReq::SET_LOG_BASE => {
                let (len, offset) = (body.u64()?, body.u64()?);
                descriptors.expect(1)?;
                let file = descriptors.take()?.into();
                Self::SetLogBase { len, offset, file }
            }
            FrontendReq::SET_VRING_NUM => Self::SetVringNum {
                index: body.u32()?,
                size: body.u32()?,
            },
            FrontendReq::SET_VRING_ADDR => {
                let (index, flags) = (body.u32()?, body.u32()?);
                let addr = VringAddr {
                    desc: body.u64()?,
                    used: body.u64()?,
                    avail: body.u64()?,
                };
                let log_addr = body.u64()?;
                if flags & !VRING_F_LOG != 0 {
                    return Err(SessionError::Value {
                        request: kind,
                        field: "flags",
                        value: flags.into(),
                    });
                }
                let log_used = (flags & VRING_F_LOG != 0).then_some(log_addr);
                Self::SetVringAddr { index, addr, log_used }
            }
            FrontendReq::SET_VRING_BASE => Self::SetVringBase {
                index: body.u32()?,
                base: body.u32()?,
            },
            FrontendReq::GET_VRING_BASE => {
                let (index, _unused) = (body.u32()?, body.u32()?);
                Self::GetVringBase { index }
            }
            FrontendReq::SET_VRING_KICK => {
                let (index, fd) = body.vring_fd(&mut descriptors)?;
                Self::SetVringKick { index, fd }
            }
            FrontendReq::SET_VRING_CALL => {
                let (index, fd) = body.vring_fd(&mut descriptors)?;
                Self::SetVringCall { index, fd }
            }
            FrontendReq::SET_VRING_ERR => {
                let (index, fd) = body.vring_fd(&mut descriptors)?;
                Self::SetVringErr { index, fd }
            }
            FrontendReq::GET_PROTOCOL_FEATURES => Self::GetProtocolFeatures,
            FrontendReq::SET_PROTOCOL_FEATURES => Self::SetProtocolFeatures(body.u64()?),
            FrontendReq::GET_QUEUE_NUM => Self::GetQueueNum,
            FrontendReq::SET_VRING_ENABLE => Self::SetVringEnable {
                index: body.u32()?,
                enable: body.u32()?,
            },
            FrontendReq::GET_CONFIG => {
                let (offset, len, flags) = (body.u32()?, body.u32()?, body.u32()?);
                body.expect(CONFIG_HEADER_LEN + len as usize)?;
                body.at = body.body.len();
                Self::GetConfig { offset, len, flags }
            }
            FrontendReq::SET_CONFIG => {
                let (offset, len, flags) = (body.u32()?, body.u32()?, body.u32()?);
                body.expect(CONFIG_HEADER_LEN + len as usize)?;
                let data = body.body[body.at..].to_vec();
                body.at = body.body.len();
                Self::SetConfig { offset, flags, data }
            }
            FrontendReq::NET_SET_MTU => Self::SetMtu(body.u64()?),
            FrontendReq::SET_BACKEND_REQ_FD => {
                descriptors.expect(1)?;
                Self::SetBackendReqFd(descriptors.take()?)
            }
            FrontendReq::GET_INFLIGHT_FD => {
                let (_len, _offset, shape) = body.inflight()?;
                Self::GetInflightFd(shape)
            }
            FrontendReq::SET_INFLIGHT_FD => {
                let (len, offset, shape) = body.inflight()?;
                descriptors.expect(1)?;
                let file = descriptors.take()?.into();
                Self::SetInflightFd {
                    len,
                    offset,
                    shape,
                    file,
                }
            }
            FrontendReq::RESET_DEVICE => Self::ResetDevice,
            FrontendReq::GET_MAX_MEM_SLOTS => Self::GetMaxMemSlots,
            FrontendReq::ADD_MEM_REG => {
                let _padding = body.u64()?;
                descriptors.expect(1)?;
                let fd = descriptors.take()?;
                Self::AddMemReg(body.region(fd)?)
            }
            FrontendReq::REM_MEM_REG => {
                let _padding = body.u64()?;
                let (guest_phys_addr, len, user_addr) = (body.u64()?, body.u64()?, body.u64()?);
                let _mmap_offset = body.u64()?;
                // Older front-ends pass the region's descriptor; it is to be closed without a look.
                descriptors
                    .descriptors
                    .truncate(descriptors.descriptors.len().saturating_sub(1));
                Self::RemMemReg {
                    guest_phys_addr,
                    len,
                    user_addr,
                }
            }
            other => return Err(SessionError::Unknown { request: other.into() }),
        };
        body.expect(body.at)?;
        if on(Check::MessageDescriptors) {
            descriptors.expect(0)?;
        }
        Ok(request)
    }
}

struct Body<'a> {
    kind: FrontendReq,
    body: &'a [u8],
    at: usize,
}

impl Body<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], SessionError> {
        let bytes = self.body.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let expected = self.at + N;
        let bytes = bytes.ok_or(SessionError::Len {
            request: self.kind,
            len: self.body.len(),
            expected,
        })?;
        self.at = expected;
        Ok(*bytes)
    }

    fn u16(&mut self) -> Result<u16, SessionError> {
        self.take().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, SessionError> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, SessionError> {
        self.take().map(u64::from_ne_bytes)
    }

    fn expect(&self, expected: usize) -> Result<(), SessionError> {
        let len = self.body.len();
        if len == expected || !on(Check::MessageLength) {
            Ok(())
        } else {
            Err(SessionError::Len {
                request: self.kind,
                len,
                expected,
            })
        }
    }

    /// Length and offset of an in-flight region in bytes, and what it is for.
    fn inflight(&mut self) -> Result<(u64, u64, InflightShape), SessionError> {
        let (len, offset) = (self.u64()?, self.u64()?);
        let (queue_count, queue_size) = (self.u16()?, self.u16()?);
        let body_len = self.body.len();
        if body_len == INFLIGHT_PADDED_LEN {
            self.at = INFLIGHT_PADDED_LEN;
        }
        let shape = InflightShape {
            queue_count,
            queue_size,
            body_len,
        };
        Ok((len, offset, shape))
    }

    fn region(&mut self, fd: OwnedFd) -> Result<RegionSpec, SessionError> {
        let (guest_phys_addr, len) = (self.u64()?, self.u64()?);
        let (user_addr, mmap_offset) = (self.u64()?, self.u64()?);
        Ok(RegionSpec {
            guest_phys_addr,
            len,
            user_addr,
            mmap_offset,
            file: fd.into(),
        })
    }

    fn vring_fd(&mut self, descriptors: &mut Descriptors) -> Result<(u32, Option<OwnedFd>), SessionError> {
        let value = self.u64()?;
        if value & !(VRING_INDEX_MASK | VRING_NO_FD) != 0 {
            return Err(SessionError::Value {
                request: self.kind,
                field: "payload",
                value,
            });
        }
        // 8 bits.
        let index = u32::try_from(value & VRING_INDEX_MASK).unwrap_or(u32::MAX);
        if value & VRING_NO_FD != 0 {
            return Ok((index, None));
        }
        descriptors.expect(1)?;
        Ok((index, Some(descriptors.take()?)))
    }
}

struct Descriptors {
    kind: FrontendReq,
    descriptors: Vec<OwnedFd>,
}

impl Descriptors {
    /// Descriptors that are not due are refused and closed.
    fn expect(&self, expected: usize) -> Result<(), SessionError> {
        let count = self.descriptors.len();
        if count == expected {
            Ok(())
        } else {
            Err(SessionError::Descriptors {
                request: self.kind,
                count,
                expected,
            })
        }
    }

    fn take(&mut self) -> Result<OwnedFd, SessionError> {
        self.descriptors.pop().ok_or(SessionError::Descriptors {
            request: self.kind,
            count: 0,
            expected: 1,
        })
    }
}
