//! The Pod's token for the gateway. The kubelet replaces the file before the token expires.
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Longest token.
const LONGEST: u64 = 8 * 1024;

/// The file, and the token that was read from it last.
pub struct TokenFile {
    path: PathBuf,
    cache: Mutex<Option<(Stamp, String)>>,
}

/// What changes with the file: a projected volume is replaced by a link to another directory.
#[derive(PartialEq, Eq)]
struct Stamp {
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

impl std::fmt::Debug for TokenFile {
    /// Without the token.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TokenFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl TokenFile {
    /// The token in the file at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, cache: Mutex::new(None) }
    }

    /// The token of now. One `stat` where the file is the same: it lies in memory, so that this does not wait.
    pub fn token(&self) -> io::Result<String> {
        let data = fs::metadata(&self.path)?;
        let stamp =
            Stamp { inode: data.ino(), modified: (data.mtime(), data.mtime_nsec()), size: data.len() };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, token)) = cache.as_ref()
            && *known == stamp
        {
            return Ok(token.clone());
        }
        let mut text = String::new();
        File::open(&self.path)?.take(LONGEST).read_to_string(&mut text)?;
        let token = text.trim();
        // Anything else would not be one header field.
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file holds no token"));
        }
        *cache = Some((stamp, token.to_owned()));
        Ok(token.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let (path, next) = (directory.path().join("token"), directory.path().join("next"));
        let file = TokenFile::new(path.clone());
        assert!(file.token().is_err());
        fs::write(&path, "one\n").unwrap();
        assert_eq!((file.token().unwrap(), file.token().unwrap()), ("one".into(), "one".into()));
        fs::write(&next, "two\n").unwrap();
        fs::rename(&next, &path).unwrap();
        assert_eq!(file.token().unwrap(), "two");
        for bad in ["", "\n", "a b", "a\r\nb: c"] {
            fs::write(&next, bad).unwrap();
            fs::rename(&next, &path).unwrap();
            assert!(file.token().is_err(), "{bad:?}");
        }
        assert!(!format!("{file:?}").contains("two"));
    }
}
