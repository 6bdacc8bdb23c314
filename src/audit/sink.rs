//! What a test gives a log to write to.
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// Keeps what is written; clones keep the same.
#[derive(Clone, Debug, Default)]
pub struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    /// Every record that was written, each of which has to be one line in canonical form.
    pub fn records(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{text}");
        let record = |line: &str| {
            let value: Value = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json_canonicalizer::to_string(&value).unwrap(), line, "canonical");
            value
        };
        text.lines().map(record).collect()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
