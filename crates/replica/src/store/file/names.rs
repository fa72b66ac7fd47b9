//! How a key's components are called on disk: as they are, but for what a file name cannot be.
//!
//! A plain file that a user puts into a bucket's directory is an object under its own name. `%` is an escape only before two
//! upper-case hex digits, so that `100%.csv` is itself. **Invariant:** `decode(encode(c)) == c`, and a name that is not the
//! encoding of its decoding is nobody's object.

/// Longest file name of common file systems.
pub const MAX_NAME_BYTES: usize = 255;

/// The file name of a component; `None` if it would be too long.
pub fn encode(component: &str) -> Option<String> {
    let bytes = component.as_bytes();
    let mut name = Vec::with_capacity(bytes.len());
    // Dot names, and ours.
    let reserved = matches!(component, "." | "..") || component.starts_with(".tarn");
    for (at, byte) in bytes.iter().enumerate() {
        let looks_escaped = *byte == b'%' && is_escape(&bytes[at..]);
        if byte.is_ascii_control() || *byte == b'/' || looks_escaped || (reserved && at == 0) {
            name.extend_from_slice(format!("%{byte:02X}").as_bytes());
        } else {
            name.push(*byte);
        }
    }
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return None;
    }
    String::from_utf8(name).ok()
}

/// The component that a file name stands for; `None` if it stands for none.
pub fn decode(name: &str) -> Option<String> {
    let bytes = name.as_bytes();
    let mut component = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if is_escape(&bytes[at..]) {
            component.push(u8::from_str_radix(&name[at + 1..at + 3], 16).ok()?);
            at += 3;
        } else {
            component.push(bytes[at]);
            at += 1;
        }
    }
    let component = String::from_utf8(component).ok()?;
    (encode(&component).as_deref() == Some(name)).then_some(component)
}

fn is_escape(bytes: &[u8]) -> bool {
    let hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'A'..=b'F');
    matches!(bytes, [b'%', high, low, ..] if hex(high) && hex(low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_names_stay_as_they_are() {
        for name in ["a b+c.parquet", "100%.csv", "größe", "k=v", ".hidden", "%zz"] {
            assert_eq!(encode(name).as_deref(), Some(name));
        }
    }

    #[test]
    fn dots_ours_and_escapes_are_escaped() {
        for (component, name) in
            [("..", "%2E."), (".", "%2E"), (".tarn-tmp", "%2Etarn-tmp"), ("%41", "%2541"), ("a\nb", "a%0Ab")]
        {
            assert_eq!(encode(component).as_deref(), Some(name));
        }
    }

    #[test]
    fn a_name_that_nothing_encodes_to_is_nobodys() {
        for name in [".tarn-tmp", "%41", "..", "."] {
            assert_eq!(decode(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn every_component_comes_back(component in "[^/]{1,60}") {
            let name = encode(&component).expect("short enough");
            prop_assert!(!name.contains('/') && name != "." && name != "..");
            prop_assert_eq!(decode(&name), Some(component));
        }
    }
}
