//! One plain request and its answer, re-serialised: the origin sees what was judged and nothing else.
use std::io;

use futures::FutureExt;
use tokio::io::AsyncWriteExt;

use super::http1::{self, Framing, Request, Response};
use super::tunnel::{Agent, Target, Tunnel};
use crate::egress::buffered::Buffered;

/// Most interim answers (1xx) before an answer.
const MAX_INTERIM: usize = 16;

/// A tunnel that carries requests to one name and port.
#[derive(Debug)]
pub struct Origin {
    tunnel: Tunnel,
}

/// What went wrong.
#[derive(Debug)]
pub struct Failed {
    /// Whether the agent has part of an answer.
    pub begun: bool,
    /// Status for the agent where it has none.
    pub status: u16,
    /// For the agent.
    pub text: String,
}

impl Origin {
    /// Requests through `tunnel`.
    pub fn new(tunnel: Tunnel) -> Self {
        Self { tunnel }
    }

    /// What it leads to.
    pub fn target(&self) -> &Target {
        self.tunnel.watch.target()
    }

    /// Itself, unless the origin has ended it or said something that nobody asked for.
    pub fn still_there(mut self) -> Option<Self> {
        let quiet =
            self.tunnel.reader.data().is_empty() && self.tunnel.reader.fill().now_or_never().is_none();
        let open = self.tunnel.watch.over().now_or_never().is_none();
        (quiet && open).then_some(self)
    }
}

/// Sends `request` for `path` to the origin and its answer to the agent. Returns the origin where both connections may
/// carry another request.
pub async fn forward(
    agent: &mut Agent,
    mut origin: Origin,
    mut request: Request,
    path: &str,
) -> Result<Option<Origin>, Failed> {
    let wrong = |status, text: String| Failed { begun: false, status, text };
    let framing = request.framing().map_err(|error| wrong(400, error.to_string()))?;
    let close = request.fields.lists("connection", "close");
    let method = std::mem::take(&mut request.method);
    let head = request_head(&method, path, &mut request, origin.target(), framing);
    let mut begun = false;
    let Tunnel { reader, writer, watch } = &mut origin.tunnel;
    let exchange = async {
        let sent = async {
            writer.write_all(&head).await?;
            writer.flush().await?;
            http1::copy_body(&mut agent.reader, writer, framing).await
        };
        let answered = answer(reader, &mut agent.writer, &method, close, &mut begun);
        tokio::pin!(sent, answered);
        // An origin may answer before it has the whole body: then neither connection can go on.
        let mut whole = false;
        tokio::select! {
            biased;
            result = &mut answered => return result.map(|keep| keep && whole),
            result = &mut sent => whole = result.is_ok(),
        }
        answered.await.map(|keep| keep && whole)
    };
    let result = tokio::select! {
        result = exchange => result,
        () = watch.over() => Err(io::Error::other("the tunnel had to end")),
    };
    match result {
        Ok(true) => Ok(Some(origin)),
        Ok(false) => Ok(None),
        Err(error) => Err(Failed { begun, status: 502, text: format!("{}: {error}", origin.target()) }),
    }
}

/// The head of `request` as the origin gets it.
pub fn request_head(
    method: &str,
    path: &str,
    request: &mut Request,
    target: &Target,
    framing: Framing,
) -> Vec<u8> {
    request.fields.drop_hop_by_hop();
    request.fields.0.retain(|(name, _)| !name.eq_ignore_ascii_case("host"));
    let host = if target.port == 80 { target.name.to_string() } else { target.to_string() };
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n").into_bytes();
    request.fields.write_to(&mut head);
    if framing == Framing::Chunked {
        head.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Passes on the answer; tells whether both connections may carry another one.
pub async fn answer<R, W>(
    origin: &mut Buffered<R>,
    agent: &mut W,
    method: &str,
    close: bool,
    begun: &mut bool,
) -> io::Result<bool>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    for _ in 0..MAX_INTERIM {
        let head = http1::read_head(origin).await?.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let mut response = Response::parse(&head)?;
        if response.status == 101 {
            return Err(io::Error::other("the origin changes the protocol, which nobody asked for"));
        }
        let framing = response.framing(method)?;
        let interim = response.status < 200;
        let keep = !close
            && response.minor == 1
            && framing != Framing::UntilEnd
            && !response.fields.lists("connection", "close");
        response.fields.drop_hop_by_hop();
        let mut head = format!("HTTP/1.1 {:03} {}\r\n", response.status, response.reason).into_bytes();
        response.fields.write_to(&mut head);
        if framing == Framing::Chunked {
            head.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        if !interim && !keep {
            head.extend_from_slice(b"Connection: close\r\n");
        }
        head.extend_from_slice(b"\r\n");
        *begun = true;
        agent.write_all(&head).await?;
        agent.flush().await?;
        if interim {
            continue;
        }
        http1::copy_body(origin, agent, framing).await?;
        if !keep {
            agent.shutdown().await?;
        }
        return Ok(keep);
    }
    Err(io::Error::other("too many interim answers"))
}
