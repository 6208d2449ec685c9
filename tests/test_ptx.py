"""The analysis of PTX for shuffles in one arm of a branch."""

import pytest

from .ptx import shuffles_in_arms

TEXT = """
.visible .entry kernel(.param .u64 a)
{{
	mov.u32 	%r1, %tid.x;
	mov.u32 	%r2, %ctaid.x;
	add.s32 	%r3, {source}, 1;
	setp.lt.s32 	%p1, %r3, 8;
	@%p1 bra 	$L__BB0_2;
	{inside}
	mov.u32 	%r5, 0;

$L__BB0_2:
	{behind}
	ret;
}}
"""
SHUFFLE = "shfl.sync.bfly.b32 	%r6|%p2, %r2, 1, 31, -1;"


@pytest.mark.parametrize(
    ("source", "inside", "behind", "found"),
    [
        ("%r1", SHUFFLE, "", ["@%p1 bra $L__BB0_2"]),
        ("%r1", "", SHUFFLE, []),
        ("%r2", SHUFFLE, SHUFFLE, []),
    ],
    ids=["in-an-arm", "behind-it", "the-same-for-all"],
)
def test_shuffles_in_one_arm_of_a_branch(source, inside, behind, found):
    assert shuffles_in_arms(TEXT.format(source=source, inside=inside, behind=behind)) == found
