//! Errors as people and programs read them: the message, each cause once, and the remedy.

use std::error::Error as _;

use backup_core::{Error, Retry};
use serde_json::{Value, json};

use super::style::Paint;
use crate::exit::Exit;

/// `error: …`, then `caused by:` and `hint:` lines, each line ended.
pub(super) fn text(error: &Error, paint: Paint) -> String {
    let mut text = format!("{} {error}\n", paint.error("error:"));
    for cause in causes(error) {
        let cause = cause.trim_end().replace('\n', "\n             ");
        text.push_str(&format!("  {} {cause}\n", paint.strong("caused by:")));
    }
    if let Some(hint) = error.remedy() {
        text.push_str(&format!("  {} {hint}\n", paint.note("hint:")));
    }
    text
}

/// An error that is no [`Error`]: only a message and what to do.
pub(super) fn complaint(message: &str, hint: Option<&str>, paint: Paint) -> String {
    let mut text = format!("{} {message}\n", paint.error("error:"));
    if let Some(hint) = hint {
        text.push_str(&format!("  {} {hint}\n", paint.note("hint:")));
    }
    text
}

/// The same for programs.
pub(super) fn json(error: &Error, exit: Exit) -> Value {
    json!({
        "result": "error",
        "exit_code": exit.code(),
        "kind": error.kind().name(),
        "message": error.to_string(),
        "causes": causes(error),
        "hint": error.remedy(),
        "retry": match error.retry() { Retry::Never => "never", Retry::Later => "later" },
    })
}

fn causes(error: &Error) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if texts.last().is_none_or(|last| !last.ends_with(&text)) {
            texts.push(text);
        }
        cause = next.source();
    }
    texts.remove(0);
    texts
}

#[cfg(test)]
mod tests {
    use backup_core::ErrorKind;

    use super::*;

    fn example() -> Error {
        let cause = std::io::Error::from_raw_os_error(28);
        Error::io("cannot write", "/srv/backups/packs/ab", cause).during("back up `main-db`")
    }

    #[test]
    fn an_error_is_told_with_its_causes_and_the_remedy() {
        insta::assert_snapshot!(text(&example(), Paint::Plain), @r"
        error: back up `main-db`: cannot write (path /srv/backups/packs/ab)
          caused by: No space left on device (os error 28)
          hint: free some space, or choose another place; nothing that was complete is lost
        ");
        assert_eq!(text(&Error::new(ErrorKind::Io, "x"), Paint::Ansi), "\u{1b}[1;31merror:\u{1b}[0m x\n");
    }

    #[test]
    fn what_a_tool_said_keeps_its_lines() {
        let error = Error::new(ErrorKind::Tool, "`pg_dump` ended with status 1").caused_by("one\ntwo\n");
        insta::assert_snapshot!(text(&error, Paint::Plain), @r"
        error: `pg_dump` ended with status 1
          caused by: one
                     two
        ");
    }

    #[test]
    fn programs_get_the_same() {
        let value = serde_json::to_string_pretty(&json(&example(), Exit::Failed)).unwrap();
        insta::assert_snapshot!(value, @r#"
        {
          "result": "error",
          "exit_code": 1,
          "kind": "no_space",
          "message": "back up `main-db`: cannot write (path /srv/backups/packs/ab)",
          "causes": [
            "No space left on device (os error 28)"
          ],
          "hint": "free some space, or choose another place; nothing that was complete is lost",
          "retry": "never"
        }
        "#);
    }
}
