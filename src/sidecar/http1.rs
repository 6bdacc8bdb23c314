//! HTTP/1.1 heads and bodies, strict (RFC 9112): what two readers could understand in two ways is refused.
use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::egress::buffered::Buffered;
use crate::egress::wire::MAX_HEAD;

/// Most header fields of a head.
const MAX_FIELDS: usize = 100;

/// Longest line that begins a chunk, and longest line of a trailer.
const MAX_CHUNK_LINE: usize = 1024;

/// End of a head.
pub const HEAD_END: &[u8] = b"\r\n\r\n";

/// Why a message is refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadMessage(pub String);

impl From<BadMessage> for io::Error {
    fn from(bad: BadMessage) -> Self {
        Self::new(io::ErrorKind::InvalidData, bad)
    }
}

fn bad<T>(text: impl Into<String>) -> Result<T, BadMessage> {
    Err(BadMessage(text.into()))
}

/// First line of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Method, as it is written.
    pub method: String,
    /// Target, as it is written.
    pub target: String,
    /// 0 or 1, for HTTP/1.0 and HTTP/1.1.
    pub minor: u8,
    /// Fields.
    pub fields: Fields,
}

/// First line of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status.
    pub status: u16,
    /// Reason phrase.
    pub reason: String,
    /// 0 or 1.
    pub minor: u8,
    /// Fields.
    pub fields: Fields,
}

/// Header fields in their order, names as they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, Vec<u8>)>);

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// None.
    Empty,
    /// So many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
    /// Until the connection ends.
    UntilEnd,
}

impl Request {
    /// Reads a head that ends with [`HEAD_END`].
    pub fn parse(head: &[u8]) -> Result<Self, BadMessage> {
        check_lines(head)?;
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(head) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            Ok(_) => return bad("an incomplete head"),
            Err(error) => return bad(error.to_string()),
        }
        let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
        else {
            return bad("an incomplete head");
        };
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return bad("a request target with other than visible ASCII characters");
        }
        let fields = Fields::of(request.headers);
        Ok(Self { method: method.to_owned(), target: target.to_owned(), minor, fields })
    }

    /// The body's length.
    pub fn framing(&self) -> Result<Framing, BadMessage> {
        if self.minor == 0 && self.fields.has("transfer-encoding") {
            return bad("Transfer-Encoding in HTTP/1.0");
        }
        Ok(self.fields.framing()?.unwrap_or(Framing::Empty))
    }
}

impl Response {
    /// Reads a head that ends with [`HEAD_END`].
    pub fn parse(head: &[u8]) -> Result<Self, BadMessage> {
        check_lines(head)?;
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        match response.parse(head) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            Ok(_) => return bad("an incomplete head"),
            Err(error) => return bad(error.to_string()),
        }
        let (Some(status), Some(minor)) = (response.code, response.version) else {
            return bad("an incomplete head");
        };
        let reason = response.reason.unwrap_or_default().to_owned();
        Ok(Self { status, reason, minor, fields: Fields::of(response.headers) })
    }

    /// The length of the body of an answer to `method`.
    pub fn framing(&self, method: &str) -> Result<Framing, BadMessage> {
        if method == "HEAD" || matches!(self.status, 100..=199 | 204 | 304) {
            return Ok(Framing::Empty);
        }
        Ok(self.fields.framing()?.unwrap_or(Framing::UntilEnd))
    }
}

impl Fields {
    fn of(fields: &[httparse::Header<'_>]) -> Self {
        Self(fields.iter().map(|field| (field.name.to_owned(), field.value.to_vec())).collect())
    }

    /// All values of `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.0
            .iter()
            .filter(move |(own, _)| own.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_slice())
    }

    /// Whether there is a field `name`.
    pub fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// The value of `name`, which there may be once.
    pub fn one(&self, name: &str) -> Result<Option<&str>, BadMessage> {
        let mut values = self.0.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
        let Some((_, value)) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return bad(format!("{name} twice"));
        }
        match std::str::from_utf8(value) {
            Ok(text) => Ok(Some(text.trim_matches([' ', '\t']))),
            Err(_) => bad(format!("{name} is not text")),
        }
    }

    /// Whether the list `name` has `token`.
    pub fn lists(&self, name: &str, token: &str) -> bool {
        self.all(name).flat_map(tokens).any(|own| own.eq_ignore_ascii_case(token))
    }

    /// Removes what is for one connection only: RFC 9110, 7.6.1, and what `Connection` names.
    pub fn drop_hop_by_hop(&mut self) {
        const OWN: [&str; 9] = [
            "connection",
            "keep-alive",
            "proxy-authenticate",
            "proxy-authorization",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
        ];
        // What frames the message or names its target is not for the sender to make away with.
        const KEPT: [&str; 2] = ["content-length", "host"];
        let named: Vec<String> =
            self.all("connection").flat_map(tokens).map(str::to_ascii_lowercase).collect();
        self.0.retain(|(name, _)| {
            let name = name.to_ascii_lowercase();
            KEPT.contains(&name.as_str()) || !(OWN.contains(&name.as_str()) || named.contains(&name))
        });
    }

    fn framing(&self) -> Result<Option<Framing>, BadMessage> {
        let length = self.one("content-length")?;
        match (self.one("transfer-encoding")?, length) {
            (Some(_), Some(_)) => bad("Content-Length beside Transfer-Encoding"),
            (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => Ok(Some(Framing::Chunked)),
            (Some(_), None) => bad("a transfer coding other than chunked"),
            (None, Some(text)) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                match text.parse::<i64>().ok().and_then(|length| u64::try_from(length).ok()) {
                    Some(length) => Ok(Some(Framing::Length(length))),
                    None => bad("Content-Length is too large"),
                }
            }
            (None, Some(_)) => bad("Content-Length is not a number"),
            (None, None) => Ok(None),
        }
    }

    /// Appends the fields in their written form.
    pub fn write_to(&self, head: &mut Vec<u8>) {
        for (name, value) in &self.0 {
            head.extend_from_slice(name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value);
            head.extend_from_slice(b"\r\n");
        }
    }
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &str> {
    // One by one: what is no text must not hide the others.
    let pieces =
        value.split(|byte| *byte == b',').map(|piece| std::str::from_utf8(piece).unwrap_or_default());
    pieces.map(|token| token.trim_matches([' ', '\t'])).filter(|token| !token.is_empty())
}

/// The parser accepts a lone line feed as the end of a line and empty lines before the first, and others do not.
fn check_lines(head: &[u8]) -> Result<(), BadMessage> {
    let mut before = 0;
    if head.starts_with(b"\r\n") {
        return bad("an empty line before the head");
    }
    for (index, byte) in head.iter().enumerate() {
        let after = head.get(index + 1).copied();
        match byte {
            b'\n' if before != b'\r' => return bad("a line feed without a carriage return"),
            b'\n' if matches!(after, Some(b' ' | b'\t')) => return bad("a folded header field"),
            b'\r' if after != Some(b'\n') => return bad("a carriage return without a line feed"),
            0 => return bad("a NUL byte"),
            _ => {}
        }
        before = *byte;
    }
    Ok(())
}

/// Reads one head; `None` where the stream ends before it.
pub async fn read_head<R: AsyncRead + Unpin>(reader: &mut Buffered<R>) -> io::Result<Option<Vec<u8>>> {
    reader.until(HEAD_END, MAX_HEAD).await
}

/// Copies a body, in the same framing. Chunk extensions and trailers are dropped.
pub async fn copy_body<R, W>(reader: &mut Buffered<R>, writer: &mut W, framing: Framing) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    match framing {
        Framing::Empty => Ok(()),
        Framing::Length(length) => copy_exactly(reader, writer, length).await,
        Framing::UntilEnd => {
            while reader.some().await? {
                pass(reader, writer, u64::MAX).await?;
            }
            Ok(())
        }
        Framing::Chunked => copy_chunks(reader, writer).await,
    }
}

async fn copy_chunks<R, W>(reader: &mut Buffered<R>, writer: &mut W) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    loop {
        let size = chunk_size(&line(reader).await?)?;
        if size == 0 {
            let mut trailers = 0;
            loop {
                let trailer = line(reader).await?;
                if trailer == b"\r\n" {
                    break;
                }
                trailers += trailer.len();
                if trailers > MAX_HEAD {
                    return Err(BadMessage(format!("trailers of more than {MAX_HEAD} bytes")).into());
                }
            }
            writer.write_all(b"0\r\n\r\n").await?;
            return writer.flush().await;
        }
        writer.write_all(format!("{size:x}\r\n").as_bytes()).await?;
        copy_exactly(reader, writer, size).await?;
        if reader.exactly(2).await? != b"\r\n" {
            return Err(BadMessage("a chunk without its end".to_owned()).into());
        }
        writer.write_all(b"\r\n").await?;
        writer.flush().await?;
    }
}

async fn line<R: AsyncRead + Unpin>(reader: &mut Buffered<R>) -> io::Result<Vec<u8>> {
    let line = reader.until(b"\n", MAX_CHUNK_LINE).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if line.ends_with(b"\r\n") {
        Ok(line)
    } else {
        Err(BadMessage("a line feed without a carriage return".to_owned()).into())
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, BadMessage> {
    let text = std::str::from_utf8(line).unwrap_or_default().trim_end_matches("\r\n");
    let digits = text.split_once(';').map_or(text, |(digits, _)| digits);
    if digits.is_empty() || digits.len() > 15 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return bad("the size of a chunk is not a number");
    }
    u64::from_str_radix(digits, 16).or_else(|_| bad("the size of a chunk is not a number"))
}

async fn copy_exactly<R, W>(reader: &mut Buffered<R>, writer: &mut W, length: u64) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut left = length;
    while left > 0 {
        if !reader.some().await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= pass(reader, writer, left).await?;
    }
    Ok(())
}

/// Passes on what is there, at most `most` bytes.
async fn pass<R, W>(reader: &mut Buffered<R>, writer: &mut W, most: u64) -> io::Result<u64>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let data = reader.data();
    let part = data.get(..data.len().min(most)).unwrap_or_default();
    let count = part.len();
    writer.write_all(part).await?;
    writer.flush().await?;
    reader.consume(count);
    Ok(u64::try_from(count).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[path = "http1_tests.rs"]
mod tests;
