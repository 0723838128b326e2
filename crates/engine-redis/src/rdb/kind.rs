//! The types of values that an RDB knows (rdb.h, the `RDB_TYPE_` names), and which type of key each of them is.
//!
//! Invariant: a type byte that is not known here stops the reader; nothing is guessed.

use std::fmt;

use super::summary::Flavour;

/// The type of a key, as `TYPE` and `SCAN … TYPE` name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyType {
    /// `string`
    String,
    /// `list`
    List,
    /// `set`
    Set,
    /// `zset`
    SortedSet,
    /// `hash`
    Hash,
    /// `stream`
    Stream,
    /// A type that a module defined. `TYPE` answers its own name.
    Module,
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::String => "string",
            Self::List => "list",
            Self::Set => "set",
            Self::SortedSet => "zset",
            Self::Hash => "hash",
            Self::Stream => "stream",
            Self::Module => "module",
        })
    }
}

/// How a value is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    String,
    /// A count, then as many strings.
    List,
    Set,
    Hash,
    /// A count, then pairs of a member and a score.
    SortedSet(Score),
    /// One string that packs all elements.
    Packed(KeyType, Packing),
    /// A count, then as many strings that are ziplists.
    Quicklist,
    /// A count, then as many pairs of a container's kind and a string.
    Quicklist2,
    /// A hash whose fields may expire, each stored by itself.
    ExpiringHash(FieldExpiry),
    /// A hash whose fields may expire, as a listpack of triples.
    ExpiringListpack(Minimum),
    /// A stream, in the form of this generation.
    Stream(StreamForm),
    /// A module's value that can be read without the module.
    Module,
}

/// How a score is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Score {
    /// As text behind its length.
    Text,
    /// As eight bytes.
    Binary,
}

/// The packed forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Zipmap,
    Ziplist,
    Intset,
    Listpack,
}

/// How the expiry of a field is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FieldExpiry {
    /// Before the field, in milliseconds (Redis 7.4 before its release).
    Absolute,
    /// Before the field, relative to the hash's smallest one (Redis 7.4 and later).
    Relative,
    /// Behind the value, eight bytes, -1 for none (Valkey 9).
    Behind,
}

/// Whether the smallest expiry of a hash stands before its listpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Minimum {
    Absent,
    Present,
}

/// The generations of stored streams: each adds something to the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum StreamForm {
    /// Redis 5.
    First,
    /// Redis 7.0: first id, largest deleted id, entries added; entries read by a group.
    Offsets,
    /// Redis 7.2: when a consumer was last active.
    Active,
    /// Redis 8.6: producers whose messages are told apart by an id of their own.
    Producers,
}

impl Stored {
    /// The stored form that a type byte names; `None` for one that is not known, or that cannot be read.
    pub(super) fn from_byte(byte: u8, flavour: Flavour) -> Option<Self> {
        use KeyType as T;
        use Packing as P;
        Some(match byte {
            0 => Self::String,
            1 => Self::List,
            2 => Self::Set,
            3 => Self::SortedSet(Score::Text),
            4 => Self::Hash,
            5 => Self::SortedSet(Score::Binary),
            7 => Self::Module,
            9 => Self::Packed(T::Hash, P::Zipmap),
            10 => Self::Packed(T::List, P::Ziplist),
            11 => Self::Packed(T::Set, P::Intset),
            12 => Self::Packed(T::SortedSet, P::Ziplist),
            13 => Self::Packed(T::Hash, P::Ziplist),
            14 => Self::Quicklist,
            15 => Self::Stream(StreamForm::First),
            16 => Self::Packed(T::Hash, P::Listpack),
            17 => Self::Packed(T::SortedSet, P::Listpack),
            18 => Self::Quicklist2,
            19 => Self::Stream(StreamForm::Offsets),
            20 => Self::Packed(T::Set, P::Listpack),
            21 => Self::Stream(StreamForm::Active),
            _ => return Self::of_its_own(byte, flavour),
        })
    }

    /// From 22 on Redis and Valkey give the same bytes different meanings.
    fn of_its_own(byte: u8, flavour: Flavour) -> Option<Self> {
        Some(match (flavour, byte) {
            (Flavour::Redis, 22) => Self::ExpiringHash(FieldExpiry::Absolute),
            (Flavour::Redis, 23) => Self::ExpiringListpack(Minimum::Absent),
            (Flavour::Redis, 24) => Self::ExpiringHash(FieldExpiry::Relative),
            (Flavour::Redis, 25) => Self::ExpiringListpack(Minimum::Present),
            (Flavour::Redis, 26) => Self::Stream(StreamForm::Producers),
            (Flavour::Valkey, 22) => Self::ExpiringHash(FieldExpiry::Behind),
            _ => return None,
        })
    }

    /// The type of key whose value it is.
    pub(super) fn key_type(self) -> KeyType {
        match self {
            Self::String => KeyType::String,
            Self::List | Self::Quicklist | Self::Quicklist2 => KeyType::List,
            Self::Set => KeyType::Set,
            Self::SortedSet(_) => KeyType::SortedSet,
            Self::Hash | Self::ExpiringHash(_) | Self::ExpiringListpack(_) => KeyType::Hash,
            Self::Packed(of, _) => of,
            Self::Stream(_) => KeyType::Stream,
            Self::Module => KeyType::Module,
        }
    }
}
