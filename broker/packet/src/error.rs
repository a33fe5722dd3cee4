//! Errors that point at the place.

use std::ops::Range;

/// Longest expression, in bytes.
pub const EXPRESSION_LEN_MAX: usize = 1024;

/// Why a text is no expression, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExpressionError {
    /// What is wrong there and what would be right.
    pub message: String,
    /// The bytes of the text that it is about; empty, and at the end, if something is missing.
    pub place: Range<usize>,
}

impl ExpressionError {
    pub(crate) fn new(place: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            place,
        }
    }

    /// The text with the place marked below it, in two lines.
    pub fn point(&self, text: &str) -> String {
        let before = text.get(..self.place.start).unwrap_or(text).chars().count();
        let marked = text.get(self.place.clone()).unwrap_or_default().chars().count().max(1);
        // On one line whatever the text holds, so that the marks stand where they should.
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        format!("{line}\n{}{}", " ".repeat(before), "^".repeat(marked))
    }
}
