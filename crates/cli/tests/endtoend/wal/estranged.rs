//! Copies of a server, and the server after it was set back: the same identifier, the same timeline, another log. They are
//! refused before anything of theirs is archived.

use std::path::{Path, PathBuf};

use backup_testkit::PrivatePostgres;

use super::{Archive, Receiver, run_tool, streamed, text, tool};
use crate::support::files_below;

fn logs(archive: &Archive) -> Vec<(PathBuf, u64)> {
    let size = |path: PathBuf| (path.clone(), path.metadata().unwrap().len());
    files_below(&archive.path("repository")).into_iter().map(size).collect()
}

fn point_at(archive: &Archive, from: &PrivatePostgres, to: &PrivatePostgres) {
    let plan = std::fs::read_to_string(archive.path("stackward.yaml")).unwrap();
    let (from, to) = (from.socket_folder().display().to_string(), to.socket_folder().display().to_string());
    std::fs::write(archive.path("stackward.yaml"), plan.replace(&from, &to)).unwrap();
}

fn grow(server: &PrivatePostgres, word: &str) -> String {
    server.sql("postgres", &format!("insert into t select '{word}' from generate_series(1, 2000)"));
    server.sql("postgres", "select pg_walfile_name(pg_switch_wal())")
}

fn whole(archive: &Archive) -> String {
    let names = archive.segments().into_iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| name.len() == 24).max().unwrap()
}

/// As PostgreSQL's user, a copy of `segment` of the server in this folder of its own.
fn copied(archive: &Archive, server: &PrivatePostgres, segment: &str) -> PathBuf {
    let to = archive.path(segment);
    std::fs::copy(server.data_folder().join("pg_wal").join(segment), &to).unwrap();
    run_tool(tool("chown").arg("postgres:postgres").arg(&to));
    to
}

fn refused(archive: &Archive, path: &Path, words: &str) {
    let (code, said) = archive.bad(&["wal", "push", path.to_str().unwrap()]);
    assert!(code == 1 && said.contains(words) && said.contains("source name of its own"), "{code} {said}");
}

#[test]
fn a_clone_that_overtakes_the_archive_is_refused_and_the_server_goes_on() {
    let (server, archive) = streamed();
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    server.sql("postgres", "create table t (word text)");
    grow(&server, "both");
    receiver.has_archived(&server);
    receiver.stop();
    server.stop_immediately();
    let clone = server.clone_of_stopped();
    server.launch();
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    grow(&server, "server");
    grow(&server, "server");
    server.sql("postgres", "insert into t values ('a piece')");
    receiver.has_archived(&server);
    receiver.stop();
    let before = logs(&archive);

    // Behind the archive: an alarm, also where nobody follows.
    point_at(&archive, &server, &clone);
    let (code, said) = archive.machine.bad("wal receive");
    assert!(
        code == 1 && said.contains("an earlier state of it") && said.contains("and the archive of"),
        "{code} {said}"
    );
    let status = archive.machine.run("wal status");
    let told = text(&status.stderr);
    assert!(
        status.status.code() == Some(20) && told.contains("earlier state of the server that was archived"),
        "{told}"
    );
    let checked = archive.machine.run("status --check");
    let told = text(&checked.stdout);
    assert!(checked.status.code() == Some(2) && told.contains("earlier state of the server"), "{told}");

    // In the midst of an archived segment, and far beyond.
    grow(&clone, "a clone of the server");
    grow(&clone, "a clone of the server");
    clone.sql("postgres", "insert into t select 'a longer piece' from generate_series(1, 1000)");
    let (code, said) = archive.machine.bad("wal receive");
    assert!(code == 1 && said.contains("is archived with other content"), "{code} {said}");
    let next = grow(&clone, "a clone of the server");
    grow(&clone, "a clone of the server");
    let (code, said) = archive.machine.bad("wal receive");
    assert!(code == 1 && said.contains("is archived with other content"), "{code} {said}");
    // When the clone has no more of what is archived, its next record tells.
    let gone = clone.data_folder().join("pg_wal").join(whole(&archive));
    let kept = std::fs::read(&gone).unwrap();
    std::fs::remove_file(&gone).unwrap();
    let (code, said) = archive.machine.bad("wal receive");
    assert!(code == 1 && said.contains("the last one of"), "{code} {said}");
    std::fs::write(&gone, &kept).unwrap();
    run_tool(tool("chown").arg("postgres:postgres").arg(&gone));

    // Whoever pushes is compared in the same way.
    run_tool(tool("chown").args(["-R", "postgres:postgres"]).arg(archive.machine.root()));
    refused(&archive, &clone.data_folder().join("pg_wal").join(&next), "the last one of");
    refused(&archive, &copied(&archive, &clone, &next), "the last one of");
    assert_eq!(logs(&archive), before, "nothing was archived");

    point_at(&archive, &clone, &server);
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    grow(&server, "server");
    receiver.has_archived(&server);
    receiver.stop();
    assert_eq!(archive.machine.run("wal status").status.code(), Some(0));
}
