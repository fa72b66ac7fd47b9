//! A small web server for files: HEAD, ranges, ETag, 404. It counts what it is asked for.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Mutex},
};

/// Serves the files of a directory under any path that ends in their names.
pub struct Ranges {
    pub address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub line: String,
    pub signed: bool,
    pub bytes: u64,
}

impl Ranges {
    pub fn start(dir: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("has one").to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (dir, log) = (dir.clone(), log.clone());
                std::thread::spawn(move || serve(stream, dir, log));
            }
        });
        Self { address, asked }
    }

    /// The requests since the last call.
    pub fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().expect("not poisoned"))
    }
}

fn serve(mut stream: TcpStream, dir: PathBuf, log: Arc<Mutex<Vec<Asked>>>) {
    let mut lines = BufReader::new(stream.try_clone().expect("clones")).lines();
    while let Some(Ok(line)) = lines.next() {
        let head: Vec<String> = lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let name = target.split('?').next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let file = File::open(dir.join(name)).ok().filter(|file| file.metadata().is_ok_and(|about| about.is_file()));
        let mut body = Vec::new();
        let answer = match file {
            None => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
            Some(file) => {
                let size = file.metadata().expect("is open").len();
                let range = head.iter().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    let (from, to) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
                    let to = to.parse().unwrap_or(u64::MAX).min(size - 1);
                    name.eq_ignore_ascii_case("range").then(|| from.parse().ok().map(|from: u64| (from, to)))?
                });
                let (from, to) = range.unwrap_or((0, size - 1));
                let length = to + 1 - from;
                if method == "GET" {
                    body.resize(length as usize, 0);
                    file.read_exact_at(&mut body, from).expect("is there");
                }
                let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
                format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {length}\r\ncontent-range: bytes {from}-{to}/{size}\r\naccept-ranges: bytes\r\netag: \"1\"\r\nlast-modified: Sun, 22 Nov 2026 00:00:00 GMT\r\n\r\n"
                )
            }
        };
        let signed = head.iter().any(|line| line.contains("KEYID"));
        log.lock().expect("not poisoned").push(Asked { line: line.clone(), signed, bytes: body.len() as u64 });
        if stream.write_all(answer.as_bytes()).and_then(|()| stream.write_all(&body)).is_err() {
            return;
        }
    }
}
