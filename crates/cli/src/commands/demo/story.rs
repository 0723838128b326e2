//! How the demo is told: numbered steps, the commands that they stand for, short lines.

use std::cell::Cell;
use std::path::Path;

use serde_json::json;

use crate::output::Output;
use crate::session::Session;

/// The teller.
pub(super) struct Story<'a> {
    out: &'a Output,
    steps: Cell<u32>,
}

impl<'a> Story<'a> {
    pub(super) fn begin(session: &'a Session<'_>, folder: &Path) -> Self {
        let out: &Output = &session.output;
        out.line(out.paint().strong("A small stack is backed up, destroyed, and put back."));
        out.line(format!("Everything happens below {}, and is removed afterwards.", folder.display()));
        Self { out, steps: Cell::new(0) }
    }

    /// The next step.
    pub(super) fn step(&self, title: &str) {
        self.steps.set(self.steps.get() + 1);
        let number = self.steps.get();
        self.out.line("");
        self.out.line(self.out.paint().strong(&format!("{number}  {title}")));
        self.out.event(&json!({ "event": "demo_step", "step": number, "title": title }));
        self.out.flush();
    }

    /// A part without a number.
    pub(super) fn heading(&self, title: &str) {
        self.out.line("");
        self.out.line(self.out.paint().strong(title));
    }

    /// The command that a reader would type.
    pub(super) fn command(&self, line: &str) {
        self.out.line(format!("   {}", self.out.paint().faint(&format!("$ {line}"))));
        self.out.flush();
    }

    /// What happened.
    pub(super) fn line(&self, text: impl std::fmt::Display) {
        self.out.line(format!("   {text}"));
        self.out.flush();
    }

    /// What happened, and was hoped for.
    pub(super) fn good(&self, text: impl std::fmt::Display) {
        self.line(self.out.paint().good(&text.to_string()));
    }
}
