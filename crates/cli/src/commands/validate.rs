//! `stackward validate`: is the plan right, and, with `--online`, would a backup work?

use backup_core::engine::Preflight;
use backup_core::{Error, Result, SourceName};
use futures::StreamExt;
use serde_json::json;

use crate::args::ValidateArgs;
use crate::exit::Exit;
use crate::output::{self, Align, Table};
use crate::session::Session;
use crate::stack::{Access, Part, Stack};

pub(crate) async fn run(session: &Session<'_>, args: &ValidateArgs) -> Result<Exit> {
    let stack = Stack::load(session)?;
    let out = &session.output;
    if !args.online {
        session.world.sinks.check(&stack.plan.sink, &stack.folder)?;
        let names: Vec<&SourceName> = stack.parts.iter().map(Part::name).collect();
        let shown: Vec<String> = names.iter().map(ToString::to_string).collect();
        out.line(format!("{} is valid: {}", stack.path.display(), shown.join(", ")));
        out.result("validate", Exit::Done, &json!({ "plan": stack.plan.name, "sources": names }));
        return Ok(Exit::Done);
    }
    let opened = stack.open(session, Access::Write).await;
    let answers = preflights(session, &stack.parts.iter().collect::<Vec<_>>(), stack.plan.concurrency).await;
    let mut failures: Vec<&Error> = answers.iter().filter_map(|(_, answer)| answer.as_ref().err()).collect();
    let place = match &opened {
        Ok(sink) => Some(sink.describe()),
        Err(error) => {
            failures.insert(0, error);
            None
        }
    };
    if let Some(place) = &place {
        out.line(format!("{} can be written", output::the(place)));
    }
    show(session, &answers);
    for failure in &failures {
        out.error(failure);
    }
    let exit = failures.first().map_or(Exit::Done, |failure| Exit::of(failure));
    let body = json!({
        "plan": stack.plan.name,
        "sink": place,
        "sources": answers_json(&answers),
        "failures": failures.iter().map(|failure| failure.chain()).collect::<Vec<_>>(),
    });
    out.result("validate", exit, &body);
    if exit == Exit::Done {
        out.summary("a backup would work");
    }
    Ok(exit)
}

/// What each source says, in the plan's order.
pub(crate) type Answers<'a> = Vec<(&'a Part, Result<Preflight>)>;

/// Asks the sources, a few at the same time.
pub(crate) async fn preflights<'a>(session: &Session<'_>, parts: &[&'a Part], concurrency: usize) -> Answers<'a> {
    let ask = |part: &&'a Part| {
        let (part, cx) = (*part, session.context(part.name()));
        async move {
            let answer = cx.unless_cancelled(part.engine.source.preflight(&cx)).await;
            (part, answer.map_err(|error| name_source(error, part.name())))
        }
    };
    let questions: Vec<_> = parts.iter().map(ask).collect();
    futures::stream::iter(questions).buffered(concurrency.max(1)).collect().await
}

fn name_source(error: Error, source: &SourceName) -> Error {
    if error.operation().is_some() { error } else { error.during(format!("source `{source}`")) }
}

/// A table of what the sources said, and their warnings.
pub(crate) fn show(session: &Session<'_>, answers: &Answers<'_>) {
    let mut table = Table::new(&[("SOURCE", Align::Left), ("SIZE", Align::Right), ("WHAT", Align::Left)]);
    for (part, answer) in answers {
        match answer {
            Ok(preflight) => {
                let size = preflight.expected_bytes.map_or_else(|| "?".to_owned(), output::bytes);
                table.row([part.name().to_string(), size, preflight.description.clone()]);
                for warning in &preflight.warnings {
                    session.output.warn(format!("{}: {warning}", part.name()));
                }
            }
            Err(_) => table.row([part.name().to_string(), "-".to_owned(), "would fail".to_owned()]),
        }
    }
    for line in table.lines() {
        session.output.line(line);
    }
}

/// The same for programs.
pub(crate) fn answers_json(answers: &Answers<'_>) -> serde_json::Value {
    let one = |(part, answer): &(&Part, Result<Preflight>)| match answer {
        Ok(preflight) => json!({ "name": part.name(), "engine": part.config.engine, "preflight": preflight }),
        Err(error) => json!({
            "name": part.name(), "engine": part.config.engine,
            "failure": error.chain(), "kind": error.kind().name(), "hint": error.remedy(),
        }),
    };
    answers.iter().map(one).collect()
}
