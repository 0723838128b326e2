//! Recovery to moments of the stream: offsets, times, the end.

use backup_core::engine::Moment;

use super::following::{Archive, QUICK, offset, position};
use crate::support::{engine, sample};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_recorded_offset_comes_back_with_an_equal_digest() {
    let server = sample(&[]);
    let archive = Archive::default();
    let following = archive.follow(&engine(&server, QUICK));
    following.tells("following").await;
    let mut states = vec![(offset(&server), server.digest())];
    for round in 0..6 {
        server.pipe(&format!(
            "SELECT {round}\nSET round {round}\nINCR counter\nLPUSH list {round} a\nMULTI\nSADD set {round}\n\
             SELECT 0\nINCR total\nEXEC\nDEL key:{round}\nXADD log * round {round}\n"
        ));
        states.push((offset(&server), server.digest()));
    }
    following.archived(&server).await;
    following.stop().await.unwrap();
    archive.assert_no_holes().await;
    for (offset, digest) in &states {
        assert_eq!(archive.digest_at(position(*offset)).await, *digest, "offset {offset}");
    }
    assert_eq!(archive.digest_at(Moment::Latest).await, states.last().unwrap().1);
}
