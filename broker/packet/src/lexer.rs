//! A text as words, each with its place.

use std::{fmt::Display, ops::Range, str::FromStr};

use crate::error::{EXPRESSION_LEN_MAX, ExpressionError};

/// A word of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word<'t> {
    pub(crate) text: &'t str,
    at: usize,
}

impl<'t> Word<'t> {
    pub(crate) fn place(&self) -> Range<usize> {
        self.at..self.at + self.text.len()
    }

    /// A part of it, by byte offsets that lie on characters.
    pub(crate) fn part(&self, range: Range<usize>) -> Word<'t> {
        Word {
            text: self.text.get(range.clone()).unwrap_or_default(),
            at: self.at + range.start,
        }
    }

    pub(crate) fn error(&self, message: impl Into<String>) -> ExpressionError {
        ExpressionError::new(self.place(), message)
    }

    /// Its value, or an error that says what it should be.
    pub(crate) fn parse<T: FromStr>(&self, what: impl Display) -> Result<T, ExpressionError> {
        self.text.parse().map_err(|_| self.error(format!("this is no {what}")))
    }
}

/// The words of an expression, taken one after the other.
#[derive(Debug)]
pub(crate) struct Words<'t> {
    words: std::vec::IntoIter<Word<'t>>,
    end: usize,
}

impl<'t> Words<'t> {
    /// Words are separated by blanks; each of `symbols` is one of its own.
    pub(crate) fn of(text: &'t str, symbols: &[char]) -> Result<Self, ExpressionError> {
        if text.len() > EXPRESSION_LEN_MAX {
            let message = format!("an expression has at most {EXPRESSION_LEN_MAX} bytes");
            return Err(ExpressionError::new(0..text.len(), message));
        }
        let mut words = Vec::new();
        let mut begun = None;
        for (at, c) in text.char_indices() {
            let is_symbol = symbols.contains(&c);
            if (c.is_whitespace() || is_symbol)
                && let Some(begin) = begun.take()
            {
                words.push((begin, at));
            }
            if is_symbol {
                words.push((at, at + c.len_utf8()));
            } else if !c.is_whitespace() && begun.is_none() {
                begun = Some(at);
            }
        }
        words.extend(begun.map(|begin| (begin, text.len())));
        let words: Vec<_> = words
            .into_iter()
            .filter_map(|(at, end)| {
                Some(Word {
                    text: text.get(at..end)?,
                    at,
                })
            })
            .collect();
        Ok(Self {
            words: words.into_iter(),
            end: text.len(),
        })
    }

    pub(crate) fn next(&mut self) -> Option<Word<'t>> {
        self.words.next()
    }

    pub(crate) fn peek(&self) -> Option<Word<'t>> {
        self.words.as_slice().first().copied()
    }

    /// The next word if it is this one.
    pub(crate) fn take(&mut self, text: &str) -> Option<Word<'t>> {
        self.peek().filter(|word| word.text == text)?;
        self.next()
    }

    /// The next word; `what` is expected there.
    pub(crate) fn expect(&mut self, what: impl Display) -> Result<Word<'t>, ExpressionError> {
        let end = self.end;
        self.next()
            .ok_or_else(|| ExpressionError::new(end..end, format!("here {what} is missing")))
    }
}
