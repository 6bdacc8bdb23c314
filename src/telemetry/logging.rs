//! Logs: to standard error, because standard output carries the audit records.
use std::sync::Arc;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

/// Form of the log lines.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The directives are not understood.
    #[error("the log level is not understood; write it such as info or agentsandbox=debug,info: {0}")]
    Directives(#[from] tracing_subscriber::filter::ParseError),
    /// A subscriber is already set.
    #[error("logging is already set up: {0}")]
    AlreadySet(#[from] tracing_subscriber::util::TryInitError),
    /// A directive without a level: a misspelt level would silence everything else.
    #[error(
        "`{0}` is no log level: write off, error, warn, info, debug or trace, or TARGET=LEVEL, several separated by commas, such as info,agentsandbox::gateway=debug"
    )]
    NoLevel(String),
    /// The subscriber is gone.
    #[error("the log level cannot be changed: {0}")]
    Reload(#[from] reload::Error),
}

type Change = dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync;

/// Changes the level of a running process.
#[derive(Clone)]
pub struct LevelHandle(Arc<Change>);

impl std::fmt::Debug for LevelHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("LevelHandle")
    }
}

impl LevelHandle {
    /// Sets the level to `directives`, in the form of [`EnvFilter`].
    pub fn set(&self, directives: &str) -> Result<(), LoggingError> {
        Ok((self.0)(filter(directives)?)?)
    }

    /// One that takes every level, and changes nothing.
    #[cfg(test)]
    pub fn of_nothing() -> Self {
        Self(Arc::new(|_| Ok(())))
    }
}

/// The filter of `directives`. A word alone is a level here, and never a target.
fn filter(directives: &str) -> Result<EnvFilter, LoggingError> {
    let level = |directive: &&str| {
        let level = directive.rsplit_once('=').map_or(*directive, |(_, level)| level).trim();
        !level.is_empty() && level.parse::<LevelFilter>().is_ok()
    };
    if let Some(wrong) = directives.split(',').find(|directive| !level(directive)) {
        return Err(LoggingError::NoLevel(crate::policy::shown(wrong.trim())));
    }
    Ok(EnvFilter::builder().parse(directives)?)
}

/// Sets up the process's logging; once per process.
pub fn init(format: LogFormat, directives: &str) -> Result<LevelHandle, LoggingError> {
    let (filter, handle) = reload::Layer::new(filter(directives)?);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()?;
        }
        LogFormat::Text => registry.with(fmt::layer().with_writer(std::io::stderr)).try_init()?,
    }
    Ok(LevelHandle(Arc::new(move |filter| handle.reload(filter))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_does_not_silence_the_log() {
        for good in ["info", "DEBUG", "off", "info,agentsandbox::gateway=trace", "warn,kube=error"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "debugg", "a b c", "nonsense=", "agentsandbox", "info,", "info,x=loud"] {
            let message = filter(bad).unwrap_err().to_string();
            assert!(message.contains("is no log level: write off, error"), "{bad}: {message}");
        }
    }
}
