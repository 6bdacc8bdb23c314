//! The first message of a TLS client (RFC 8446, section 4.1.2; RFC 6066, section 3): the name that it asks for.
//!
//! A client may send a second hello when the server asks it to try again. It is not looked at: the server is the one
//! of the tunnel's name whatever the hello says, and what a server does for one name inside TLS it can do for another
//! without a second hello.

/// Longest hello. Those of today's clients, with a post-quantum key, have 2 KiB.
const MAX_HELLO: usize = 16 * 1024;

/// Longest record (RFC 8446, section 5.1).
const MAX_RECORD: usize = 16 * 1024;

/// Type of a record with handshake messages.
pub const HANDSHAKE: u8 = 22;

const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// What is wrong with a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Not a record of a handshake.
    #[error("the bytes are no TLS handshake")]
    Record,
    /// Not a hello, or one with bytes after it in its record.
    #[error("the first message is no ClientHello")]
    Message,
    /// Longer than 16 KiB.
    #[error("the ClientHello is longer than {MAX_HELLO} bytes")]
    TooLong,
    /// A length inside that does not fit.
    #[error("the ClientHello is malformed")]
    Malformed,
    /// An extension that is there twice, or more than one name.
    #[error("the ClientHello names its server more than once")]
    Repeated,
}

/// What a client asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The server name as it stands.
    pub server_name: Option<String>,
    /// Whether it carries an encrypted hello (RFC 9849), real or not.
    pub encrypted: bool,
}

/// Puts a hello together from the bytes of a connection, whatever pieces and records they come in.
#[derive(Debug, Default)]
pub struct HelloReader {
    /// Bytes of the current record's header.
    header: Vec<u8>,
    /// Bytes left of the current record.
    left: usize,
    /// Bytes of the message so far.
    message: Vec<u8>,
}

impl HelloReader {
    /// Takes more bytes; the hello, once it is complete. Bytes of later records are not looked at.
    pub fn push(&mut self, mut input: &[u8]) -> Result<Option<ClientHello>, HelloError> {
        while let Some((first, after)) = input.split_first() {
            if self.left == 0 {
                self.header.push(*first);
                input = after;
                self.check_header()?;
                continue;
            }
            let (piece, rest) = input.split_at_checked(self.left).unwrap_or((input, &[]));
            self.message.extend_from_slice(piece);
            self.left -= piece.len();
            input = rest;
            if let Some(hello) = self.complete()? {
                return Ok(Some(hello));
            }
        }
        Ok(None)
    }

    fn check_header(&mut self) -> Result<(), HelloError> {
        match *self.header.as_slice() {
            [kind, ..] if kind != HANDSHAKE => Err(HelloError::Record),
            [_, major, ..] if major != 3 => Err(HelloError::Record),
            [_, _, minor, ..] if minor > 4 => Err(HelloError::Record),
            [_, _, _, high, low] => {
                let length = usize::from(u16::from_be_bytes([high, low]));
                if length == 0 || length > MAX_RECORD {
                    return Err(HelloError::Record);
                }
                self.left = length;
                self.header.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn complete(&self) -> Result<Option<ClientHello>, HelloError> {
        let [kind, rest @ ..] = self.message.as_slice() else { return Ok(None) };
        if *kind != CLIENT_HELLO {
            return Err(HelloError::Message);
        }
        let [high, middle, low, body @ ..] = rest else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([0, *high, *middle, *low])).unwrap_or(usize::MAX);
        if length > MAX_HELLO {
            return Err(HelloError::TooLong);
        }
        match body.len().cmp(&length) {
            std::cmp::Ordering::Less => Ok(None),
            // The keys may change after a hello: nothing else may be in its record.
            std::cmp::Ordering::Greater => Err(HelloError::Message),
            std::cmp::Ordering::Equal if self.left > 0 => Err(HelloError::Message),
            std::cmp::Ordering::Equal => read(body).map(Some),
        }
    }
}

fn read(body: &[u8]) -> Result<ClientHello, HelloError> {
    let mut rest = Bytes(body);
    // Version and random.
    rest.skip(34)?;
    let session = rest.vector8()?;
    let suites = rest.vector16()?;
    let compression = rest.vector8()?;
    if session.0.len() > 32 || suites.0.is_empty() || suites.0.len() % 2 != 0 || compression.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut hello = ClientHello::default();
    if rest.0.is_empty() {
        return Ok(hello);
    }
    let mut extensions = rest.vector16()?;
    if !rest.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut seen = Vec::new();
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        if seen.contains(&kind) {
            return Err(HelloError::Repeated);
        }
        // A hello of 16 KiB has room for 4,096 of them: the search above is bounded by this.
        if seen.len() >= 128 {
            return Err(HelloError::Malformed);
        }
        seen.push(kind);
        match kind {
            SERVER_NAME => hello.server_name = Some(server_name(data)?),
            ENCRYPTED_CLIENT_HELLO => hello.encrypted = true,
            _ => {}
        }
    }
    Ok(hello)
}

fn server_name(mut data: Bytes<'_>) -> Result<String, HelloError> {
    let mut list = data.vector16()?;
    let kind = list.u8()?;
    let name = list.vector16()?;
    if !data.0.is_empty() || kind != 0 || name.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    if !list.0.is_empty() {
        return Err(HelloError::Repeated);
    }
    if !name.0.iter().all(u8::is_ascii_graphic) {
        return Err(HelloError::Malformed);
    }
    String::from_utf8(name.0.to_vec()).map_err(|_| HelloError::Malformed)
}

/// Bytes that are taken from the front.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn skip(&mut self, count: usize) -> Result<Bytes<'a>, HelloError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(Bytes(taken))
    }

    fn u8(&mut self) -> Result<u8, HelloError> {
        let (first, rest) = self.0.split_first().ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    fn u16(&mut self) -> Result<u16, HelloError> {
        Ok(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    fn vector8(&mut self) -> Result<Bytes<'a>, HelloError> {
        let length = self.u8()?;
        self.skip(usize::from(length))
    }

    fn vector16(&mut self) -> Result<Bytes<'a>, HelloError> {
        let length = self.u16()?;
        self.skip(usize::from(length))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rstest::rstest;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring};

    use super::*;

    /// The first bytes of a client that asks for `name`.
    pub fn hello_of(name: &str) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut bytes = Vec::new();
        ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
        bytes
    }

    /// A hello of these extensions, in one record.
    pub fn hello_with(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut list = Vec::new();
        for (kind, data) in extensions {
            list.extend(kind.to_be_bytes());
            list.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            list.extend(data);
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend(u16::try_from(list.len()).unwrap().to_be_bytes());
        body.extend(list);
        let mut message = vec![CLIENT_HELLO];
        message.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
        message.extend(body);
        records(&message, MAX_RECORD)
    }

    /// The value of a server name extension with these names.
    pub fn names(names: &[&str]) -> (u16, Vec<u8>) {
        let mut list = Vec::new();
        for name in names {
            list.push(0);
            list.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
            list.extend(name.as_bytes());
        }
        let mut data = u16::try_from(list.len()).unwrap().to_be_bytes().to_vec();
        data.extend(list);
        (SERVER_NAME, data)
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message
            .chunks(size)
            .flat_map(|piece| {
                let mut record = vec![HANDSHAKE, 3, 1];
                record.extend(u16::try_from(piece.len()).unwrap().to_be_bytes());
                record.extend(piece);
                record
            })
            .collect()
    }

    fn of(bytes: &[u8]) -> Result<Option<ClientHello>, HelloError> {
        HelloReader::default().push(bytes)
    }

    #[test]
    fn a_real_client_is_understood() {
        let mut bytes = hello_of("api.example");
        bytes.extend(b"later records");
        let hello = ClientHello { server_name: Some("api.example".to_owned()), encrypted: false };
        assert_eq!(of(&bytes), Ok(Some(hello)));
        assert_eq!(of(&hello_of("192.0.2.1")).unwrap().unwrap().server_name, None);
    }

    #[test]
    fn an_encrypted_hello_is_seen() {
        let hello = of(&hello_with(&[names(&["a.example"]), (ENCRYPTED_CLIENT_HELLO, vec![0; 8])]));
        assert!(hello.unwrap().unwrap().encrypted);
    }

    #[rstest]
    #[case::two_names(&[names(&["a.example", "b.example"])], HelloError::Repeated)]
    #[case::twice(&[names(&["a.example"]), names(&["b.example"])], HelloError::Repeated)]
    #[case::unknown_twice(&[(9, vec![]), (9, vec![])], HelloError::Repeated)]
    #[case::empty_name(&[names(&[""])], HelloError::Malformed)]
    #[case::no_names(&[names(&[])], HelloError::Malformed)]
    #[case::nul(&[names(&["a.example\0.b.example"])], HelloError::Malformed)]
    #[case::blank(&[names(&["a.example "])], HelloError::Malformed)]
    #[case::bytes_after(&[(SERVER_NAME, vec![0, 4, 0, 0, 1, b'a', b'b'])], HelloError::Malformed)]
    #[case::long_inside(&[(SERVER_NAME, vec![0, 4, 0, 0, 9, b'a'])], HelloError::Malformed)]
    #[case::other_kind(&[(SERVER_NAME, vec![0, 4, 1, 0, 1, b'a'])], HelloError::Malformed)]
    fn what_two_readers_may_read_differently_is_refused(
        #[case] extensions: &[(u16, Vec<u8>)],
        #[case] error: HelloError,
    ) {
        assert_eq!(of(&hello_with(extensions)), Err(error));
    }

    #[test]
    fn other_messages_are_refused() {
        let good = hello_with(&[names(&["a.example"])]);
        let with = |index: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[index] = value;
            of(&bytes)
        };
        assert_eq!(with(0, 23), Err(HelloError::Record));
        assert_eq!(with(1, 2), Err(HelloError::Record));
        assert_eq!(with(5, 2), Err(HelloError::Message));
        assert_eq!(with(6, 1), Err(HelloError::TooLong));
        // A message that is shorter than its record.
        assert!(matches!(with(8, good[8] - 1), Err(HelloError::Message | HelloError::Malformed)));
        // An empty record.
        assert_eq!(of(&[22, 3, 1, 0, 0]), Err(HelloError::Record));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = of(&bytes);
            let mut framed = vec![HANDSHAKE, 3, 1];
            framed.extend(u16::try_from(bytes.len() + 4).unwrap().to_be_bytes());
            framed.push(CLIENT_HELLO);
            framed.extend(&u32::try_from(bytes.len()).unwrap().to_be_bytes()[1..]);
            framed.extend(&bytes);
            let _ = of(&framed);
        }

        #[test]
        fn a_changed_byte_never_makes_another_name(index in 0..2048_usize, value: u8) {
            let mut bytes = hello_of("api.example");
            let index = index % bytes.len();
            bytes[index] = value;
            if let Ok(Some(ClientHello { server_name: Some(name), .. })) = of(&bytes) {
                let text = String::from_utf8_lossy(&bytes);
                prop_assert!(text.contains(&name) && name.len() <= 11, "{name}");
            }
        }

        #[test]
        fn pieces_and_records_do_not_matter(record in 1..300_usize, piece in 1..300_usize) {
            let whole = hello_of("api.example");
            let bytes = records(&whole[5..], record);
            let mut reader = HelloReader::default();
            let mut found = None;
            for part in bytes.chunks(piece) {
                prop_assert!(found.is_none());
                found = reader.push(part).unwrap();
            }
            prop_assert_eq!(found, of(&whole).unwrap());
        }
    }
}
