//! Text of others in messages.

/// Characters that a message shows.
const SHOWN: usize = 64;

/// `text` as a message may show it: cut, and without characters that could forge a log line or a terminal's output.
pub fn shown(text: &str) -> String {
    let mut cut: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        cut.push_str("...");
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_and_escaped() {
        assert_eq!(shown("api.example"), "api.example");
        assert_eq!(shown("a\0b\n\u{1b}[2J"), "a\\0b\\n\\u{1b}[2J");
        assert_eq!(shown(&"x".repeat(65)), format!("{}...", "x".repeat(64)));
    }
}
