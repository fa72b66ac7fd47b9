//! How deep JSON nests, seen while its bytes pass: DuckDB's reader follows brackets to any depth and crashes the process.

use crate::{failure::Failure, wire::Code};

/// Deepest nesting.
const MAX_DEPTH: u32 = 128;

/// Looks at one body's bytes, in pieces of any size.
#[derive(Default)]
pub struct Depth {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Depth {
    /// Refuses bytes that nest too deep.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        for byte in bytes {
            match (self.in_string, byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (true, b'"') => self.in_string = false,
                // A string that is not closed ends with its line, or all that follows would pass unseen.
                (true, b'\n') => self.in_string = false,
                (true, _) => {}
                (false, b'"') => self.in_string = true,
                (false, b'[' | b'{') => {
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(Failure::new(
                            Code::Invalid,
                            format!("the body's JSON nests deeper than {MAX_DEPTH} levels"),
                        ));
                    }
                }
                (false, b']' | b'}') => self.depth = self.depth.saturating_sub(1),
                (false, _) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_brackets_outside_of_strings_count_however_the_bytes_are_cut() {
        let line = format!("{{\"a\": \"{}\\\"{}\", \"b\": [1]}}\n", "[".repeat(500), "{".repeat(500));
        let mut depth = Depth::default();
        for piece in line.repeat(300).as_bytes().chunks(7) {
            depth.check(piece).expect("flat");
        }
        assert_eq!(depth.depth, 0);
        let deep = format!("{{\"a\": {}", "[".repeat(200));
        assert!(Depth::default().check(deep.as_bytes()).is_err());
        assert!(Depth::default().check(format!("\"x\n{deep}").as_bytes()).is_err(), "behind an open string");
    }
}
