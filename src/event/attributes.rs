//! The texts that every event has.

use std::fmt;

/// CloudEvents `id`, `source`, `type` and `subject`, in one piece of memory: events come and go by the hundred thousand a second.
#[derive(Clone, PartialEq, Eq)]
pub struct Attributes {
    /// One after the other.
    text: Box<str>,
    /// Where the first three end, in bytes.
    ends: [usize; 3],
}

impl Attributes {
    /// Of an event.
    pub fn new(id: &str, source: &str, event_type: &str, subject: &str) -> Self {
        let ends = [id.len(), id.len() + source.len(), id.len() + source.len() + event_type.len()];
        Self { text: [id, source, event_type, subject].concat().into(), ends }
    }

    /// CloudEvents `id`.
    pub fn id(&self) -> &str {
        &self.text[..self.ends[0]]
    }

    /// CloudEvents `source`.
    pub fn source(&self) -> &str {
        &self.text[self.ends[0]..self.ends[1]]
    }

    /// CloudEvents `type`.
    pub fn event_type(&self) -> &str {
        &self.text[self.ends[1]..self.ends[2]]
    }

    /// CloudEvents `subject`.
    pub fn subject(&self) -> &str {
        &self.text[self.ends[2]..]
    }

    /// The same with another subject.
    pub fn set_subject(&mut self, subject: &str) {
        *self = Self::new(self.id(), self.source(), self.event_type(), subject);
    }

    /// How long all are together.
    pub const fn bytes(&self) -> usize {
        self.text.len()
    }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = f.debug_struct("Attributes");
        all.field("id", &self.id()).field("source", &self.source());
        all.field("event_type", &self.event_type()).field("subject", &self.subject()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_what_it_was() {
        let mut attributes = Attributes::new("i-1", "ü", "", "s");
        let all = |a: &Attributes| [a.id(), a.source(), a.event_type(), a.subject()].map(str::to_owned);
        assert_eq!(all(&attributes), ["i-1", "ü", "", "s"]);
        attributes.set_subject("other");
        assert_eq!(all(&attributes), ["i-1", "ü", "", "other"]);
        assert_ne!(Attributes::new("a", "b", "", ""), Attributes::new("ab", "", "", ""));
    }
}
