//! Restores: into running servers, by files, into folders; and what they refuse.

use backup_core::engine::RestoreTarget;
use backup_core::error::ErrorKind;
use backup_testkit::PrivateRedis;

use crate::support::{back_up, engine, folder, replacing, restore, sample, select};

#[tokio::test]
async fn a_running_server_gets_everything_by_commands() {
    let (server, target) = (sample(&[]), PrivateRedis::start());
    let saved = back_up(&engine(&server, "")).await.unwrap();
    let report = restore(&engine(&target, ""), &saved, &RestoreTarget::default()).await.unwrap();
    assert_eq!(target.digest(), server.digest());
    assert_eq!(target.call(&["FUNCTION", "LIST"]), server.call(&["FUNCTION", "LIST"]));
    assert_eq!(report.items, 3000 + 14);
}
