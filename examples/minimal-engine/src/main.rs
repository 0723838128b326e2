//! A `stackward` of one's own: the usual program with one more engine in its list.

use std::process::ExitCode;

use backup_core::engine::EngineDescriptor;
use stackward::World;
use stackward::output::Terminal;
use tokio_util::sync::CancellationToken;

/// The engines that this program serves. To keep those of `stackward`, list them here, too.
const ENGINES: &[EngineDescriptor] = &[example_minimal_engine::NOTES];

fn main() -> ExitCode {
    let world = World { engines: ENGINES, ..World::real() };
    stackward::run(std::env::args_os(), &world, Terminal::of_process(), &CancellationToken::new()).into()
}
