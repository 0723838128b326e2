//! A private Redis on a unix socket in a temporary folder, and a connection that speaks its protocol.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use backup_core::host::{Host, HostCommand, HostProcess, LocalHost};
use engine_redis::rdb::KeyType;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader as AsyncBufReader};

pub(crate) const DATABASES: u32 = 16;

/// A running server; it ends when this is dropped.
pub(crate) struct Server {
    folder: tempfile::TempDir,
    _process: HostProcess,
}

/// An answer of the server.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    Nil,
    Number(i64),
    Text(Vec<u8>),
    Row(Vec<Reply>),
    Error(String),
}

impl Server {
    /// An empty server.
    pub(crate) async fn start() -> Self {
        Self::with_rdb(None).await
    }

    /// A server that loads this RDB first.
    pub(crate) async fn with_rdb(rdb: Option<&[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        if let Some(rdb) = rdb {
            std::fs::write(folder.path().join("dump.rdb"), rdb).unwrap();
        }
        let socket = folder.path().join("s");
        let databases = DATABASES.to_string();
        let command = HostCommand::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--enable-debug-command", "local"])
            .args(["--databases", &databases, "--dir"])
            .arg(folder.path())
            .arg("--unixsocket")
            .arg(&socket);
        let mut process = LocalHost.spawn(command).await.expect("redis-server: apt install redis-server");
        let mut lines = AsyncBufReader::new(process.take_stdout().unwrap()).lines();
        let mut log = String::new();
        loop {
            let line = lines.next_line().await.unwrap();
            let line = line.unwrap_or_else(|| panic!("the server ended:\n{log}"));
            log.push_str(&line);
            log.push('\n');
            if line.contains("ready to accept connections") {
                break;
            }
        }
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { folder, _process: process }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::over(&self.socket())
    }

    /// Lets the server save, and returns what it wrote.
    pub(crate) fn save(&self) -> Vec<u8> {
        self.connect().ok(&["SAVE"]);
        std::fs::read(self.folder.path().join("dump.rdb")).unwrap()
    }

    /// Sends commands through `redis-cli --pipe`, which must find no error in the answers.
    pub(crate) async fn pipe(&self, commands: Vec<u8>) {
        let command = HostCommand::new("redis-cli").arg("-s").arg(self.socket()).arg("--pipe").piped_stdin();
        let mut process = LocalHost.spawn(command).await.unwrap();
        let mut stdin = process.take_stdin().unwrap();
        let feed = tokio::spawn(async move {
            stdin.write_all(&commands).await.unwrap();
            stdin.shutdown().await.unwrap();
        });
        let answer = process.output(64 * 1024).await.unwrap();
        feed.await.unwrap();
        assert!(answer.contains("errors: 0"), "{answer}");
    }
}

pub(crate) struct Connection(BufReader<UnixStream>);

impl Connection {
    /// To whatever server has this socket.
    pub(crate) fn over(socket: &Path) -> Self {
        Self(BufReader::new(UnixStream::connect(socket).unwrap()))
    }

    pub(crate) fn send<A: AsRef<[u8]>>(&mut self, arguments: &[A]) {
        let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
        for argument in arguments {
            let argument = argument.as_ref();
            bytes.extend(format!("${}\r\n", argument.len()).bytes());
            bytes.extend(argument);
            bytes.extend(b"\r\n");
        }
        self.0.get_mut().write_all(&bytes).unwrap();
    }

    pub(crate) fn call<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Reply {
        self.send(arguments);
        self.reply()
    }

    /// A command that must not be answered by an error.
    pub(crate) fn ok<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Reply {
        let reply = self.call(arguments);
        if let Reply::Error(error) = &reply {
            panic!("{}: {error}", String::from_utf8_lossy(arguments[0].as_ref()));
        }
        reply
    }

    /// The same, of words.
    pub(crate) fn words(&mut self, line: &str) -> Reply {
        self.ok(&line.split(' ').collect::<Vec<_>>())
    }

    fn reply(&mut self) -> Reply {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            "+" => Reply::Text(rest.into()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Number(rest.parse().unwrap()),
            _ if rest == "-1" => Reply::Nil,
            "$" => {
                let mut text = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.0.read_exact(&mut text).unwrap();
                text.truncate(text.len() - 2);
                Reply::Text(text)
            }
            "*" => Reply::Row((0..rest.parse::<usize>().unwrap()).map(|_| self.reply()).collect()),
            _ => panic!("what is {line:?}?"),
        }
    }

    /// All keys of the selected database, of one type when it is given.
    pub(crate) fn keys(&mut self, of: Option<KeyType>) -> Vec<Vec<u8>> {
        let (mut cursor, mut keys) = (b"0".to_vec(), Vec::new());
        loop {
            let mut arguments = vec![b"SCAN".to_vec(), cursor, b"COUNT".to_vec(), b"10000".to_vec()];
            if let Some(of) = of {
                arguments.extend([b"TYPE".to_vec(), of.to_string().into_bytes()]);
            }
            let Reply::Row(mut page) = self.ok(&arguments) else { panic!("SCAN answers a row") };
            let (Some(Reply::Row(found)), Some(Reply::Text(next))) = (page.pop(), page.pop()) else {
                panic!("SCAN answers a cursor and keys")
            };
            keys.extend(found.into_iter().map(Reply::text));
            if next == b"0" {
                keys.sort();
                return keys;
            }
            cursor = next;
        }
    }

    /// The server's own counts per database and type.
    pub(crate) fn counts(&mut self) -> BTreeMap<u32, BTreeMap<KeyType, u64>> {
        use KeyType as T;
        let mut counts = BTreeMap::new();
        for database in 0..DATABASES {
            self.words(&format!("SELECT {database}"));
            let of_types = [T::String, T::List, T::Set, T::SortedSet, T::Hash, T::Stream];
            let of_types = of_types.map(|of| (of, self.keys(Some(of)).len() as u64));
            let of_types: BTreeMap<_, _> = of_types.into_iter().filter(|(_, count)| *count > 0).collect();
            if !of_types.is_empty() {
                counts.insert(database, of_types);
            }
        }
        counts
    }
}

impl Reply {
    pub(crate) fn text(self) -> Vec<u8> {
        match self {
            Self::Text(text) => text,
            other => panic!("{other:?} is not a text"),
        }
    }
}
