"""What is left of a script when it is sent."""

import pytest

from cluster.gateway.script import sent


@pytest.mark.parametrize(
    ("written", "is_sent"),
    [
        ("  const a = b + 1; // why", "let a=b + 1;"),
        ("/** What.\n *  Why. */\nlet x", "let x"),
        ("a = {\n  b, // of a\n\n  c: [\n    d,\n  ],\n};\n\n// e\ne()\n", "a={b,c:[d]};e()"),
        ("a()\n  .b();\n  c", "a().b();c"),
        ("f(\n  a,\n);\nif (b) {\n  c();\n}\nfor (;;) d()", "f(a);if(b){c()}for(;;)d()"),
        ("return 'a  // b'", "return'a  // b'"),
        ('f("a \\" // b",  c)', 'f("a \\" // b",c)'),
        ("`a  ${ b }  // c`", "`a  ${ b }  // c`"),
        ("x.split(/: ?(.*)/s)", "x.split(/: ?(.*)/s)"),
        ("x.replace(/[/'] \\/ /g, '')", "x.replace(/[/'] \\/ /g,'')"),
        ("a / b / c", "a/b/c"),
        ("a - -b; c + +d", "a - -b;c + +d"),
        ("const of = $a in b", "let of=$a in b"),
    ],
)
def test_only_what_counts_is_sent(written: str, is_sent: str) -> None:
    assert sent(written) == is_sent
