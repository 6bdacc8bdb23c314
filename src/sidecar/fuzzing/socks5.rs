//! The SOCKS5 proxy.
use std::io;
use std::net::Ipv4Addr;

use super::super::dns::Directory;
use super::super::socks5::{self, Asked};
use super::{Rules, is_own};
use crate::egress::buffered::Buffered;
use crate::fuzzing::pieces::{Pieces, finish, sizes};
use crate::policy::HostName;

/// What a SOCKS5 client asks for, and what it sends after that.
type Conversation = Result<Option<(Asked, Vec<u8>)>, io::ErrorKind>;

async fn converse(reader: Pieces<'_>) -> Conversation {
    let mut reader = Buffered::new(reader);
    if !socks5::greet(&mut reader).await.map_err(|error| error.kind())? {
        return Ok(None);
    }
    let asked = socks5::read_request(&mut reader).await.map_err(|error| error.kind())?;
    let mut rest = reader.data().to_vec();
    while reader.fill().await.map_err(|error| error.kind())? > 0 {
        rest = reader.data().to_vec();
    }
    Ok(Some((asked, rest)))
}

/// A greeting and a request; what they lead to, as `name:port`.
pub(crate) fn socks5(stream: &[u8]) -> Option<String> {
    let whole = finish(converse(Pieces::new(stream, usize::MAX)));
    for size in sizes(stream) {
        assert_eq!(finish(converse(Pieces::new(stream, size))), whole, "in pieces of {size}");
    }
    let (asked, rest) = whole.ok()??;
    // By the lengths of RFC 1928, without thought.
    let request = &stream[2 + usize::from(stream[1])..];
    let port = |at: usize| u16::from_be_bytes([request[at], request[at + 1]]);
    let (expected, length) = match *request {
        [5, 1, 0, 1, a, b, c, d, ..] => (Asked::Address(Ipv4Addr::new(a, b, c, d), port(8)), 10),
        [5, 1, 0, 3, length, ..] => {
            let end = 5 + usize::from(length);
            (Asked::Name(request[5..end].to_vec(), port(end)), end + 2)
        }
        _ => match asked {
            Asked::Other(7 | 8) => return None,
            other => panic!("{other:?} of no request that is served"),
        },
    };
    assert_eq!((&asked, rest.as_slice()), (&expected, &request[length..]));
    let rules = Rules::new();
    let target = socks5::resolve(&asked, &rules).ok();
    let named = match &asked {
        Asked::Name(host, port) => HostName::from_bytes(host).ok().zip(Some(*port)),
        Asked::Address(address, port) => rules.name(*address).filter(|_| is_own(*address)).zip(Some(*port)),
        Asked::Other(_) => None,
    };
    let named = named.filter(|(_, port)| *port > 0);
    assert_eq!(target.clone().map(|target| (target.name, target.port)), named);
    target.map(|target| target.to_string())
}

/// The name that a SOCKS5 client reaches that writes `host`.
pub(crate) fn asked_by_socks5(host: &[u8]) -> Option<HostName> {
    let asked = Asked::Name(host.to_vec(), 443);
    socks5::resolve(&asked, &Rules::new()).ok().map(|target| target.name)
}
