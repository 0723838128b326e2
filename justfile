# What a person types daily. `just` alone lists it; everything works without just, too.

default:
    @just --list

# Everything that CI checks; with a word, only the tests whose names contain it
test *FILTER:
    cargo xtask test {{FILTER}}

# Formats, applies clippy's suggestions, writes docs/reference anew
tidy:
    cargo xtask tidy

# The whole circle on a stack made up for it
demo:
    cargo run --release -- demo

# Shows new snapshots of the program's output, to accept or to reject
review:
    cargo insta review

# Explores with the fuzz targets, so many seconds each
fuzz SECONDS="60":
    cargo xtask fuzz --seconds {{SECONDS}}

# A benchmark
bench *NAME:
    cargo xtask bench {{NAME}}
