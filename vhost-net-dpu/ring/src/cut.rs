//! A device that is killed between any two of its stores, for tests: those after the cut do not happen.

use std::cell::Cell;

thread_local! {
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Does the store that is about to be made happen?
pub(crate) fn store_happens() -> bool {
    LEFT.with(|left| match left.get() {
        None => true,
        Some(0) => false,
        Some(more) => {
            left.set(Some(more - 1));
            true
        }
    })
}

/// Do what `device` does up to its first `count` stores. How many more it would have made is not told, but whether it
/// was cut short.
pub(crate) fn after<T>(count: usize, device: impl FnOnce() -> T) -> (T, bool) {
    LEFT.set(Some(count));
    let result = device();
    let left = LEFT.replace(None);
    (result, left == Some(0))
}
