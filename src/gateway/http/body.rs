//! Where the body of an HTTP/1 request ends (RFC 9112, section 6 and 7).

/// Most digits of the size of a chunk: up to 2^60 bytes.
const MAX_DIGITS: u8 = 15;

/// What is left of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// This many bytes.
    Length(u64),
    /// Chunks, of which this is next.
    Chunked(Chunk),
}

/// Place in a body of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// In a size, with its value and digits so far.
    Size(u64, u8),
    /// At the LF after a size.
    SizeEnd(u64),
    /// In the data, with the bytes left.
    Data(u64),
    /// At the CR after the data.
    DataCr,
    /// At the LF after the data.
    DataLf,
    /// At the CR of the end; trailers are refused.
    EndCr,
    /// At the LF of the end.
    EndLf,
    /// After the end.
    Done,
}

/// What is wrong with a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The size of a chunk: only digits and CRLF are allowed, no extension.
    #[error("the size of a chunk is not hexadecimal digits and CRLF")]
    Size,
    /// The data of a chunk is longer than its size says.
    #[error("a chunk does not end with CRLF")]
    End,
    /// Fields after the last chunk.
    #[error("fields after the last chunk are not allowed")]
    Trailer,
}

impl Body {
    /// A body of chunks.
    pub const fn chunked() -> Self {
        Self::Chunked(Chunk::Size(0, 0))
    }

    /// Whether nothing is left.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Done))
    }

    /// Takes what belongs to the body from the start of `input` and says how many bytes that is.
    pub fn take(&mut self, input: &[u8]) -> Result<usize, BodyError> {
        let mut taken = 0;
        while !self.is_done() {
            let rest = input.get(taken..).unwrap_or_default();
            let Some(first) = rest.first() else { break };
            taken += match self {
                Self::Length(left) | Self::Chunked(Chunk::Data(left)) => {
                    let most = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left = left.saturating_sub(u64::try_from(most).unwrap_or(u64::MAX));
                    most
                }
                Self::Chunked(chunk) => {
                    *chunk = chunk.after(*first)?;
                    1
                }
            };
            if *self == Self::Chunked(Chunk::Data(0)) {
                *self = Self::Chunked(Chunk::DataCr);
            }
        }
        Ok(taken)
    }
}

impl Chunk {
    fn after(self, byte: u8) -> Result<Self, BodyError> {
        match (self, byte) {
            (Self::Size(_, 1..), b'\r') => match self {
                Self::Size(size, _) => Ok(Self::SizeEnd(size)),
                _ => Err(BodyError::Size),
            },
            (Self::Size(size, digits), _) => {
                let digit = char::from(byte).to_digit(16).ok_or(BodyError::Size)?;
                if digits >= MAX_DIGITS {
                    return Err(BodyError::Size);
                }
                Ok(Self::Size(size * 16 + u64::from(digit), digits + 1))
            }
            (Self::SizeEnd(0), b'\n') => Ok(Self::EndCr),
            (Self::SizeEnd(size), b'\n') => Ok(Self::Data(size)),
            (Self::SizeEnd(_), _) => Err(BodyError::Size),
            (Self::DataCr, b'\r') => Ok(Self::DataLf),
            (Self::DataLf, b'\n') => Ok(Self::Size(0, 0)),
            (Self::EndCr, b'\r') => Ok(Self::EndLf),
            (Self::EndLf, b'\n') => Ok(Self::Done),
            (Self::EndCr | Self::EndLf, _) => Err(BodyError::Trailer),
            (Self::Data(_) | Self::DataCr | Self::DataLf | Self::Done, _) => Err(BodyError::End),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("5\r\nhello\r\n0\r\n\r\nGET", 15)]
    #[case::empty("0\r\n\r\nGET", 5)]
    #[case::zeros("0005\r\nhello\r\n000\r\n\r\n", 20)]
    #[case::letters("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\nx", 35)]
    #[case::partial("5\r\nhel", 6)]
    fn chunks_end_where_they_say(#[case] text: &str, #[case] taken: usize) {
        let mut body = Body::chunked();
        assert_eq!(body.take(text.as_bytes()), Ok(taken));
        assert_eq!(body.is_done(), !text.ends_with("hel"));
    }

    #[rstest]
    #[case::extension("5;a=b\r\nhello\r\n")]
    #[case::extension_with_lf("5;a\nb\r\nhello\r\n")]
    #[case::bare_lf("5\nhello\r\n")]
    #[case::blank_before(" 5\r\nhello\r\n")]
    #[case::blank_after("5 \r\nhello\r\n")]
    #[case::prefix("0x5\r\nhello\r\n")]
    #[case::sign("+5\r\nhello\r\n")]
    #[case::negative("-5\r\nhello\r\n")]
    #[case::underscore("1_0\r\nhello\r\n")]
    #[case::no_digits("\r\nhello\r\n")]
    #[case::huge("fffffffffffffffff\r\n")]
    #[case::overflow("10000000000000005\r\nhello\r\n")]
    #[case::cr_without_lf("5\rhello\r\n")]
    #[case::longer_than_said("5\r\nhello!\r\n0\r\n\r\n")]
    #[case::lf_after_data("5\r\nhello\n0\r\n\r\n")]
    #[case::trailer("0\r\nHost: other\r\n\r\n")]
    #[case::lf_at_the_end("0\r\n\n")]
    fn what_two_readers_may_read_differently_is_refused(#[case] text: &str) {
        assert!(Body::chunked().take(text.as_bytes()).is_err(), "{text:?}");
    }

    #[test]
    fn a_length_is_exact() {
        let mut body = Body::Length(3);
        assert_eq!(body.take(b"ab"), Ok(2));
        assert_eq!(body.take(b"cd"), Ok(1));
        assert!(body.is_done());
        assert_eq!(body.take(b"d"), Ok(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Body::chunked().take(&bytes);
        }

        #[test]
        fn pieces_do_not_matter(
            chunks in prop::collection::vec("[a-z\r\n0;]{1,20}", 0..4),
            rest in "[ -~]{0,8}",
            cuts in prop::collection::vec(1..9_usize, 0..40),
        ) {
            let mut text = String::new();
            for chunk in &chunks {
                text.push_str(&format!("{:x}\r\n{chunk}\r\n", chunk.len()));
            }
            text.push_str("0\r\n\r\n");
            let length = text.len();
            text.push_str(&rest);
            let mut whole = Body::chunked();
            prop_assert_eq!(whole.take(text.as_bytes()), Ok(length));
            let (mut body, mut at) = (Body::chunked(), 0);
            for cut in cuts.into_iter().chain([text.len()]) {
                let piece = &text.as_bytes()[at.min(text.len())..(at + cut).min(text.len())];
                let taken = body.take(piece).unwrap();
                at += taken;
                prop_assert!(body.is_done() || taken == piece.len());
            }
            prop_assert!(body.is_done());
            prop_assert_eq!(at, length);
        }
    }
}
