//! Bytes from one side to the other until both have said all, or the tunnel has to end.
use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::tunnel::{Agent, Tunnel};
use crate::egress::buffered::Buffered;

/// Carries both ways. When either side breaks or the tunnel has to end, the agent's connection is reset.
pub async fn relay(mut agent: Agent, tunnel: Tunnel) {
    let Tunnel { mut reader, mut writer, watch } = tunnel;
    let both = async {
        tokio::try_join!(pump(&mut agent.reader, &mut writer), pump(&mut reader, &mut agent.writer))
    };
    let whole = tokio::select! {
        done = both => done.is_ok(),
        () = watch.over() => false,
    };
    if !whole {
        agent.reset();
    }
}

/// One way, to its end, which is passed on.
async fn pump<R, W>(reader: &mut Buffered<R>, writer: &mut W) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    while reader.some().await? {
        let more = reader.gather();
        let data = reader.data();
        let count = data.len();
        writer.write_all(data).await?;
        writer.flush().await?;
        reader.consume(count);
        more?;
    }
    writer.shutdown().await
}
