//! Backups inside one's own service: a plan, a repository, a run with its events, a drill and a restore, without the
//! command line. `cargo run -p example-embed` prints events as JSON lines, then what came of each step.

mod circle;

use std::io::Write;
use std::sync::{Arc, Mutex};

use backup_core::{Event, Observer, Result};

/// Writes every event as one JSON line. A service would feed its metrics and its log instead.
struct JsonLines<W>(Mutex<W>);

impl<W: Write + Send> Observer for JsonLines<W> {
    fn event(&self, event: &Event) {
        // Called from many threads. An event that cannot be written must not stop a backup.
        if let (Ok(line), Ok(mut to)) = (serde_json::to_string(event), self.0.lock()) {
            let _unheard = writeln!(to, "{line}");
        }
    }
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|source| backup_core::Error::from_io("no temporary folder", source))?;
    let circle = circle::run(folder.path(), Arc::new(JsonLines(Mutex::new(std::io::stdout())))).await?;
    println!("snapshot  {} is {:?}", circle.manifest.id, circle.manifest.outcome);
    println!("listed    {} snapshot(s)", circle.listed);
    println!("drilled   {:?} in {:?}", circle.drill.checked, circle.drill.restore_time);
    println!("restored  {} items to {}", circle.restored.items, circle.restored.restored.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_circle_closes_and_the_observer_hears_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let observer = Arc::new(JsonLines(Mutex::new(Vec::new())));
        let circle = circle::run(folder.path(), observer.clone()).await.unwrap();
        assert_eq!(circle.listed, 1);
        assert_eq!(circle.drill.findings, Vec::<String>::new());
        // A tree keeps its whole path below the folder that it is restored to.
        let below = folder.path().strip_prefix("/").unwrap().join("uploads/a.txt");
        assert_eq!(std::fs::read_to_string(folder.path().join("restored").join(below)).unwrap(), "one\n");
        let lines = String::from_utf8(observer.0.lock().unwrap().clone()).unwrap();
        let heard = |event: &str| lines.lines().any(|line| line.contains(&format!("\"event\":\"{event}\"")));
        assert!(["started", "sealed", "finished"].into_iter().all(heard), "{lines}");
    }
}
