package fs

import (
	"strings"
	"testing"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// What a link may lead to, judged by its name and its target alone.
func TestFollowable(t *testing.T) {
	good, other := []byte("the rebuilt bytes"), []byte("other rebuilt bytes!")
	unknown := sumOf([]byte("nobody has granted this"))
	d := newDesk(t)
	d.admit([]capstore.Subject{subject(t, "v1/langid.bin", good), subject(t, "vocab.txt", other)})
	f := &filesystem{view: d.view}
	for _, x := range []struct {
		link, target string
		want         Reason // "" is handed out
		mention      string
	}{
		{"a/langid.bin", "../b/langid.bin", "", ""},
		{"readme.md", "docs/readme.md", "", ""},
		{"a/v1", "v1", "", ""},

		{"a/langid.bin", "/etc/passwd", ReasonSymlink, "absolute"},
		{"a/langid.bin", "../../x", ReasonSymlink, "leaves the mount"},
		{"a/langid.bin", "", ReasonSymlink, "empty"},
		{"vocab.txt", "words.txt", ReasonWrongName, "vocab.txt names something that is approved"},
		{"v1/langid.bin", "../langid.bin", ReasonWrongName, "v1/langid.bin names something"},

		// By a hash, under a name that the content has.
		{"v1/langid.bin", "../blobs/" + sumOf(good), "", ""},
		{"x/vocab.txt", "../blobs/" + sumOf(other), "", ""},
		{"blobs/" + sumOf(good), "../store/" + sumOf(good), "", ""},
		{"anything.bin", "blobs/" + unknown, "", ""}, // opening it refuses
		// Under one that it has not.
		{"langid.bin", "blobs/" + sumOf(good), ReasonWrongName, "approved as v1/langid.bin and not as langid.bin"},
		{"v1/langid.bin", "../blobs/" + sumOf(other), ReasonWrongName, "approved as vocab.txt"},
		{"vocab.txt", "blobs/" + sumOf(good), ReasonWrongName, "approved as v1/langid.bin"},
		// A hash that stands for another, known or not.
		{"blobs/" + sumOf(good), sumOf(other), ReasonWrongName, "under the name of sha256:" + sumOf(good)},
		{"blobs/" + sumOf(good), unknown, ReasonWrongName, "under the name of sha256:" + sumOf(good)},
		{"blobs/" + unknown, sumOf(good), ReasonWrongName, "under the name of sha256:" + unknown},
	} {
		v := f.followable(x.link, x.target)
		if v.Reason != x.want || v.Allowed() || !strings.Contains(v.Detail, x.mention) || (x.want != "") != (v.Next != "") {
			t.Errorf("%s -> %s: %q (%s; %s), want %q", x.link, x.target, v.Reason, v.Detail, v.Next, x.want)
		}
	}
	// The refusal names a capability of the content.
	v := f.followable("langid.bin", "blobs/"+sumOf(good))
	if s, ok := v.Capability.Subject("v1/langid.bin"); !ok || s.Digest != hashpipe.SumBytes(good).Claim() {
		t.Errorf("the refusal rests on %v", v.Capability.ID())
	}
}
