//! A fault in guest memory fails that memory, not the process.
//!
//! The host owns the files behind guest memory and may truncate them or punch holes while they are mapped. The next
//! access raises SIGBUS, which by default kills the process, and with it every other guest's device. So mapped regions
//! are registered here. On a fault in one of them the handler maps zero pages of our own over the whole region and
//! marks it poisoned; the access is repeated and goes on. Any other SIGBUS goes to whoever handled it before.
//!
//! The handler takes no lock and allocates nothing. A slot that is being changed while the handler looks for an address
//! cannot be the one it looks for: a region is removed only when nobody can access it any more.

use std::{
    mem::MaybeUninit,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence},
    },
};

use libc::{c_int, c_void, sigaction, siginfo_t};
use rustix::io::Errno;

/// Regions that all guests together may have registered.
pub(crate) const SLOT_COUNT: usize = 16_384;

/// One registered range. `len` is 0 while the slot is free; `version` is odd while the range changes.
struct Slot {
    version: AtomicU32,
    start: AtomicUsize,
    len: AtomicUsize,
    poisoned: AtomicBool,
}

static SLOTS: [Slot; SLOT_COUNT] = [const {
    Slot {
        version: AtomicU32::new(0),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        poisoned: AtomicBool::new(false),
    }
}; SLOT_COUNT];

/// Slots from here on were never used.
static SLOTS_USED: AtomicUsize = AtomicUsize::new(0);
/// How often a region was poisoned since the process began. Lets [`any_fault`] answer with one load.
static FAULTS: AtomicUsize = AtomicUsize::new(0);
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static PREVIOUS: OnceLock<sigaction> = OnceLock::new();

/// Why a range could not be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuardError {
    Full,
    Install(Errno),
}

/// A registered range. Must be dropped before the range is unmapped.
#[derive(Debug)]
pub(crate) struct Registration(usize);

impl Registration {
    /// Watch `len` bytes from `start`, both multiples of the page size of the mapping, which must be one mapping.
    pub(crate) fn new(start: usize, len: usize) -> Result<Self, GuardError> {
        install()?;
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match free.pop() {
            Some(index) => index,
            None => {
                let index = SLOTS_USED.load(Ordering::Relaxed);
                if index == SLOT_COUNT {
                    return Err(GuardError::Full);
                }
                SLOTS_USED.store(index + 1, Ordering::Release);
                index
            }
        };
        SLOTS[index].set(start, len);
        Ok(Self(index))
    }

    /// Did a fault replace the region by zero pages?
    pub(crate) fn poisoned(&self) -> bool {
        SLOTS[self.0].poisoned.load(Ordering::Acquire)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        SLOTS[self.0].set(0, 0);
        free.push(self.0);
    }
}

/// Was any region poisoned since the process began? Answers for what was read from guest memory before.
#[inline]
pub(crate) fn any_fault() -> bool {
    // An acquiring load alone keeps later reads behind it, not earlier ones before it.
    fence(Ordering::Acquire);
    FAULTS.load(Ordering::Acquire) != 0
}

impl Slot {
    /// Change the range. Only one thread does so at a time: the caller holds [`FREE`].
    fn set(&self, start: usize, len: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.poisoned.store(false, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// The range, unless it is being changed.
    fn get(&self) -> Option<(usize, usize)> {
        let before = self.version.load(Ordering::Acquire);
        let range = (self.start.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let after = self.version.load(Ordering::Relaxed);
        (before.is_multiple_of(2) && before == after).then_some(range)
    }
}

fn install() -> Result<(), GuardError> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if *done {
        return Ok(());
    }
    let mut previous = MaybeUninit::<sigaction>::zeroed();
    // SAFETY: with no new action, sigaction only writes the present one to `previous`, which is valid for that.
    let rc = unsafe { sigaction(libc::SIGBUS, std::ptr::null(), previous.as_mut_ptr()) };
    if rc != 0 {
        return Err(GuardError::Install(last_errno()));
    }
    // SAFETY: zeroed is a valid sigaction, and sigaction has filled it in.
    PREVIOUS.get_or_init(|| unsafe { previous.assume_init() });

    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_sigbus;
    // SAFETY: zeroed is a valid sigaction: no handler, an empty mask, no flags.
    let mut action: sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the action is fully set, and the handler does only what a signal handler may.
    let rc = unsafe { sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    if rc != 0 {
        return Err(GuardError::Install(last_errno()));
    }
    *done = true;
    Ok(())
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler installed with SA_SIGINFO; for SIGBUS it has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // A code above 0 means that the kernel found a fault; others are signals that somebody sent.
    if code > 0 && replace_faulted(address) {
        return;
    }
    pass_on(signal, code, info, context);
}

/// Map zero pages over the region that holds `address`. False if no region does, or if that fails.
fn replace_faulted(address: usize) -> bool {
    for slot in &SLOTS[..SLOTS_USED.load(Ordering::Acquire)] {
        let Some((start, len)) = slot.get() else { continue };
        if address.wrapping_sub(start) >= len {
            continue;
        }
        // Told before zero pages are there: whoever reads one and then asks, must hear of it.
        slot.poisoned.store(true, Ordering::Relaxed);
        FAULTS.fetch_add(1, Ordering::Release);
        // SAFETY: errno is thread-local; the interrupted code may be about to read it, so it is put back below.
        let errno = unsafe { *libc::__errno_location() };
        // SAFETY: the range is exactly one mapping that is ours and still in use, or the access could not have
        // faulted. Other threads that access it see either the old pages or zero pages, as guest memory may change
        // at any time anyway. mmap is a plain system call.
        let mapped = unsafe {
            libc::mmap(
                start as *mut c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
        return mapped != libc::MAP_FAILED;
    }
    false
}

/// Hand a SIGBUS that is not ours to the handler that was there before, or die of it as the default is.
fn pass_on(signal: c_int, code: c_int, info: *mut siginfo_t, context: *mut c_void) {
    if let Some(previous) = PREVIOUS.get()
        && previous.sa_sigaction != libc::SIG_DFL
        && previous.sa_sigaction != libc::SIG_IGN
    {
        if previous.sa_flags & libc::SA_SIGINFO != 0 {
            // SAFETY: an action with SA_SIGINFO holds a function of this type, and gets what the kernel gave us.
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(previous.sa_sigaction) };
            handler(signal, info, context);
        } else {
            // SAFETY: an action without SA_SIGINFO that is neither default nor ignore holds a function of this type.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(previous.sa_sigaction) };
            handler(signal);
        }
        return;
    }
    // SAFETY: zeroed is the default action. A fault repeats when the handler returns and then kills the process; a
    // signal that was sent does not repeat, so it is raised again.
    unsafe {
        let default: sigaction = MaybeUninit::zeroed().assume_init();
        sigaction(libc::SIGBUS, &raw const default, std::ptr::null_mut());
        if code <= 0 {
            libc::raise(signal);
        }
    }
}
