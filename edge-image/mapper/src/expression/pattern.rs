//! Patterns without regular expressions: `*` stands for any text, everything else for itself.

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern<'p>(&'p str);

impl<'p> Pattern<'p> {
    pub fn new(text: &'p str) -> Pattern<'p> {
        Pattern(text)
    }

    /// What the `wanted`-th star (from 0) stands for, when the whole text fits. Each star takes as little as it can.
    pub fn part<'t>(&self, text: &'t str, wanted: usize) -> Option<&'t str> {
        let mut literals = self.0.split('*');
        let mut rest = text.strip_prefix(literals.next()?)?;
        let mut found = None;
        let mut literals = literals.enumerate().peekable();
        while let Some((star, literal)) = literals.next() {
            // The last one reaches to the end of the text.
            let len = if literals.peek().is_none() {
                rest.ends_with(literal).then(|| rest.len() - literal.len())?
            } else {
                rest.find(literal)?
            };
            if star == wanted {
                found = Some(&rest[..len]);
            }
            rest = &rest[len + literal.len()..];
        }
        found.filter(|_| rest.is_empty() || !self.0.contains('*'))
    }
}
