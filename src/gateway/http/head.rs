//! The head of an HTTP/1 request (RFC 9112), read in the one way that no two readers can disagree on: lines end with
//! CRLF, nothing is folded, nothing is trimmed but the blanks around a value.

/// Longest head, with the empty line that ends it.
pub const MAX_HEAD: usize = crate::egress::wire::MAX_HEAD;

/// Most fields of a head.
const MAX_FIELDS: usize = 128;

/// Longest method.
const MAX_METHOD: usize = 32;

/// What is wrong with a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It has no end within [`MAX_HEAD`].
    #[error("the head of the request is longer than {MAX_HEAD} bytes")]
    TooLong,
    /// A CR, LF or NUL that is not part of a CRLF.
    #[error("a line of the head does not end with CRLF, or holds a CR, LF or NUL")]
    LineEnd,
    /// The first line.
    #[error("the request line is not METHOD TARGET HTTP/1.1")]
    RequestLine,
    /// A line that is no `name: value`, or one that continues the line before.
    #[error("a line of the head is not `name: value`")]
    Field,
    /// More than [`MAX_FIELDS`].
    #[error("the head has more than {MAX_FIELDS} fields")]
    TooManyFields,
}

/// A head. Every part is checked: the method is a token, the target is visible ASCII, names are tokens, and values
/// hold no control characters but tabs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head<'a> {
    /// Method.
    pub method: &'a str,
    /// Target, never empty.
    pub target: &'a str,
    /// 0 or 1, of HTTP/1.
    pub minor: u8,
    /// Names as written, and values without the blanks around them, in order.
    pub fields: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Head<'a> {
    /// Values of the field `name` (in lower case).
    pub fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    /// The only value of the field `name`; `Err` if there are several.
    pub fn only(&self, name: &str) -> Result<Option<&'a [u8]>, Repeated> {
        let mut values = self.values(name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            (_, Some(_)) => Err(Repeated),
        }
    }
}

/// A field is there more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeated;

/// Length of the head that `bytes` begin with, if it is complete. `seen` bytes of it were looked at before and were
/// good, so that a head in many pieces is read once.
pub fn length(bytes: &[u8], seen: usize) -> Result<Option<usize>, HeadError> {
    let mut index = seen.min(bytes.len());
    while let Some(byte) = bytes.get(index) {
        match byte {
            0 => return Err(HeadError::LineEnd),
            b'\n' if index.checked_sub(1).and_then(|before| bytes.get(before)) != Some(&b'\r') => {
                return Err(HeadError::LineEnd);
            }
            b'\n' if bytes.get(..=index).is_some_and(|head| head.ends_with(b"\r\n\r\n")) => {
                let length = index + 1;
                return if length <= MAX_HEAD { Ok(Some(length)) } else { Err(HeadError::TooLong) };
            }
            _ => index += 1,
        }
    }
    if bytes.len() >= MAX_HEAD { Err(HeadError::TooLong) } else { Ok(None) }
}

/// Reads a head that [`length`] found.
pub fn parse(head: &[u8]) -> Result<Head<'_>, HeadError> {
    let mut rest = head;
    let (method, target, minor) = request_line(line(&mut rest)?)?;
    let mut fields = Vec::new();
    loop {
        let line = line(&mut rest)?;
        if line.is_empty() {
            break;
        }
        if fields.len() >= MAX_FIELDS {
            return Err(HeadError::TooManyFields);
        }
        fields.push(field(line)?);
    }
    if rest.is_empty() { Ok(Head { method, target, minor, fields }) } else { Err(HeadError::LineEnd) }
}

/// The next line without its CRLF.
fn line<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], HeadError> {
    let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n' | 0)).ok_or(HeadError::LineEnd)?;
    let (line, after) = rest.split_at_checked(end).ok_or(HeadError::LineEnd)?;
    *rest = after.strip_prefix(b"\r\n").ok_or(HeadError::LineEnd)?;
    Ok(line)
}

fn request_line(line: &[u8]) -> Result<(&str, &str, u8), HeadError> {
    let text = std::str::from_utf8(line).map_err(|_| HeadError::RequestLine)?;
    let mut parts = text.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(HeadError::RequestLine);
    };
    let minor = match version {
        "HTTP/1.1" => 1,
        "HTTP/1.0" => 0,
        _ => return Err(HeadError::RequestLine),
    };
    let good = is_token(method.as_bytes())
        && method.len() <= MAX_METHOD
        && !target.is_empty()
        && target.bytes().all(|byte| byte.is_ascii_graphic());
    if good { Ok((method, target, minor)) } else { Err(HeadError::RequestLine) }
}

fn field(line: &[u8]) -> Result<(&str, &[u8]), HeadError> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or(HeadError::Field)?;
    let (name, value) = line.split_at_checked(colon).ok_or(HeadError::Field)?;
    let value = value.strip_prefix(b":").ok_or(HeadError::Field)?;
    let good = is_token(name) && value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..));
    let name = std::str::from_utf8(name).map_err(|_| HeadError::Field)?;
    // Of what is trimmed here, only blanks and tabs are left.
    if good { Ok((name, value.trim_ascii())) } else { Err(HeadError::Field) }
}

/// Whether `bytes` are a token of RFC 9110.
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_head_is_read_as_it_stands() {
        let text = b"GET /a?b HTTP/1.1\r\nHost: x.example\r\nA:\t b c \r\nEmpty:\r\n\r\nrest";
        let length = length(text, 0).unwrap().unwrap();
        assert_eq!(&text[length..], b"rest");
        let head = parse(&text[..length]).unwrap();
        assert_eq!((head.method, head.target, head.minor), ("GET", "/a?b", 1));
        assert_eq!(head.fields, [("Host", &b"x.example"[..]), ("A", b"b c"), ("Empty", b"")]);
        assert_eq!(head.only("host"), Ok(Some(&b"x.example"[..])));
    }

    #[rstest]
    #[case::bare_lf("GET / HTTP/1.1\nHost: a\n\n")]
    #[case::bare_lf_in_the_middle("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n")]
    #[case::bare_cr("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n")]
    #[case::nul("GET / HTTP/1.1\r\nHost: a\0\r\n\r\n")]
    #[case::folded("GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n")]
    #[case::folded_by_tab("GET / HTTP/1.1\r\nX: a\r\n\tb: c\r\n\r\n")]
    #[case::blank_before_colon("GET / HTTP/1.1\r\nHost : a\r\n\r\n")]
    #[case::no_colon("GET / HTTP/1.1\r\nHost\r\n\r\n")]
    #[case::empty_name("GET / HTTP/1.1\r\n: a\r\n\r\n")]
    #[case::no_token("GET / HTTP/1.1\r\nHo(st: a\r\n\r\n")]
    #[case::control_in_value("GET / HTTP/1.1\r\nX: \x01\r\n\r\n")]
    #[case::two_blanks("GET  / HTTP/1.1\r\n\r\n")]
    #[case::tab("GET\t/ HTTP/1.1\r\n\r\n")]
    #[case::blank_at_the_end("GET / HTTP/1.1 \r\n\r\n")]
    #[case::blank_first(" GET / HTTP/1.1\r\n\r\n")]
    #[case::empty_line_first("\r\nGET / HTTP/1.1\r\n\r\n")]
    #[case::no_version("GET /\r\n\r\n")]
    #[case::other_version("GET / HTTP/2.0\r\n\r\n")]
    #[case::small_version("GET / http/1.1\r\n\r\n")]
    #[case::long_version("GET / HTTP/1.10\r\n\r\n")]
    #[case::blank_in_target("GET /a b HTTP/1.1\r\n\r\n")]
    #[case::not_ascii("GET /\u{e4} HTTP/1.1\r\n\r\n")]
    #[case::bad_method("G@T / HTTP/1.1\r\n\r\n")]
    #[case::preface("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")]
    fn what_two_readers_may_read_differently_is_refused(#[case] text: &str) {
        let whole = match length(text.as_bytes(), 0) {
            Ok(Some(length)) => length,
            Ok(None) => panic!("more is waited for"),
            Err(_) => return,
        };
        assert!(parse(&text.as_bytes()[..whole]).is_err(), "{text:?}");
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(length(&[b'a'; MAX_HEAD], 0), Err(HeadError::TooLong));
        assert_eq!(length(&[b'a'; MAX_HEAD - 1], 0), Ok(None));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(parse(many.as_bytes()), Err(HeadError::TooManyFields));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, seen in 0..64_usize) {
            let _ = length(&bytes, seen);
            let _ = parse(&bytes);
        }

        #[test]
        fn what_passes_has_one_reading(
            text in "(GET|A|) ?(/[a-z%]{0,3}|[ \t])( HTTP/1.1| HTTP/1.0|)(\r\n|\n|\r)((H|h|a b|:)(:|: | :)[ -~\t\n\r\u{0}]{0,8}(\r\n|\n|\r|\r\n ))*\r\n",
        ) {
            if let Ok(head) = parse(text.as_bytes()) {
                // Split at every CRLF and colon without thought, it is the same.
                let mut lines = text.split("\r\n");
                let first: Vec<&str> = lines.next().unwrap().split(' ').collect();
                prop_assert_eq!(first[..2].to_vec(), vec![head.method, head.target]);
                for (name, value) in &head.fields {
                    let (n, v) = lines.next().unwrap().split_once(':').unwrap();
                    prop_assert_eq!((*name, *value), (n, v.trim_matches([' ', '\t']).as_bytes()));
                }
                prop_assert_eq!(lines.collect::<Vec<_>>(), vec!["", ""]);
                prop_assert!(!text.replace("\r\n", "").contains(['\r', '\n', '\0']));
            }
        }

        #[test]
        fn pieces_do_not_matter(text in "(GET / HTTP/1.1\r\n)(a: b\r\n){0,3}(\r\n|\n|x)", cut in 0..40_usize) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            if let Ok(None) = length(&bytes[..cut], 0) {
                prop_assert_eq!(length(bytes, cut), length(bytes, 0));
            }
        }
    }
}
