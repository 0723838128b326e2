//! RDB files made by hand, byte by byte.

/// A growing RDB.
pub(crate) struct Rdb(pub(crate) Vec<u8>);

impl Rdb {
    pub(crate) fn new(magic: &str) -> Self {
        Self(magic.as_bytes().to_vec())
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A short string.
    pub(crate) fn string(self, text: &[u8]) -> Self {
        let length = u32::try_from(text.len()).unwrap();
        if length < 64 {
            self.raw(&[length as u8]).raw(text)
        } else {
            self.raw(&[0x80]).raw(&length.to_be_bytes()).raw(text)
        }
    }

    /// A type byte and a name.
    pub(crate) fn key(self, kind: u8, name: &str) -> Self {
        self.raw(&[kind]).string(name.as_bytes())
    }

    /// The end, without a checksum.
    pub(crate) fn end(self) -> Vec<u8> {
        self.raw(&[255]).raw(&[0; 8]).0
    }

    /// The end of a version before 5, which has none.
    pub(crate) fn bare_end(self) -> Vec<u8> {
        self.raw(&[255]).0
    }
}

/// A listpack of encoded elements.
pub(crate) fn listpack(elements: &[&[u8]]) -> Vec<u8> {
    let mut body = Vec::new();
    for element in elements {
        assert!(element.len() < 128);
        body.extend_from_slice(element);
        body.push(element.len() as u8);
    }
    let size = (6 + body.len() + 1) as u32;
    [&size.to_le_bytes()[..], &(elements.len() as u16).to_le_bytes(), &body, &[0xff]].concat()
}

/// A text as an element of a listpack.
pub(crate) fn text(text: &str) -> Vec<u8> {
    [&[0x80 | text.len() as u8], text.as_bytes()].concat()
}

/// A number of eight bytes as an element of a listpack.
pub(crate) fn number(number: i64) -> Vec<u8> {
    [&[0xf4][..], &number.to_le_bytes()].concat()
}

/// A ziplist of encoded elements.
pub(crate) fn ziplist(elements: &[&[u8]]) -> Vec<u8> {
    let (mut body, mut previous) = (Vec::new(), 0);
    let mut tail = 10;
    for element in elements {
        tail = 10 + body.len();
        let before = body.len();
        if previous < 254 {
            body.push(previous as u8);
        } else {
            body.push(0xfe);
            body.extend((previous as u32).to_le_bytes());
        }
        body.extend_from_slice(element);
        previous = body.len() - before;
    }
    let size = (10 + body.len() + 1) as u32;
    let header = [size.to_le_bytes(), (tail as u32).to_le_bytes()].concat();
    [&header[..], &(elements.len() as u16).to_le_bytes(), &body, &[0xff]].concat()
}

/// Takes commands apart; fails when they are not exactly in the protocol's form.
pub(crate) fn commands(mut rest: &[u8]) -> Vec<Vec<Vec<u8>>> {
    fn number(rest: &mut &[u8], mark: u8) -> usize {
        let end = rest.iter().position(|byte| *byte == b'\r').unwrap();
        let (line, after) = rest.split_at(end);
        assert_eq!((line[0], after[1]), (mark, b'\n'));
        *rest = &after[2..];
        std::str::from_utf8(&line[1..]).unwrap().parse().unwrap()
    }
    let mut commands = Vec::new();
    while !rest.is_empty() {
        let count = number(&mut rest, b'*');
        let argument = |_| {
            let length = number(&mut rest, b'$');
            let (argument, after) = rest.split_at(length);
            assert_eq!(&after[..2], b"\r\n");
            rest = &after[2..];
            argument.to_vec()
        };
        commands.push((0..count).map(argument).collect());
    }
    commands
}
