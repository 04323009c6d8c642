package fs

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// layout is a directory as a program of its field lays it out.
type layout struct {
	kind    string
	load    loader
	program string // of the loader, as the audit has it

	files map[string][]byte
	links map[string]string
	// grants are the approved contents by the name under which they are approved.
	grants map[string][]byte
	first  string // the first file that is refused while nothing is granted

	// attacks are made on a granted layout, each on one of its own.
	attacks []attack
}

// attack changes files or links of a layout. A nil file is left out.
type attack struct {
	name  string
	files map[string][]byte
	links map[string]string
	at    string // the path that is refused
	why   Reason
}

func TestRealLayouts(t *testing.T) {
	models := makeModels(t)
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		for _, l := range []layout{huggingFace(models), ollama(models), triton(models), shards(models)} {
			t.Run(l.kind, func(t *testing.T) { l.pass(t, choose) })
		}
	})
}

func (l layout) pass(t *testing.T, choose func(*serverSpec)) {
	m := mountEmpty(t, choose)
	dirs := []string{m.at("plain")}
	m.lay("plain", l.files, l.links)
	for _, a := range l.attacks {
		files, links := maps.Clone(l.files), make(map[string]string)
		maps.Copy(links, l.links)
		maps.Copy(files, a.files)
		maps.Copy(links, a.links)
		m.lay(a.name, files, links)
		dirs = append(dirs, m.at(a.name))
	}
	refused := func(got map[string]answer, path string, why Reason) {
		t.Helper()
		if a := got[l.kind]; a.Error == "" {
			t.Errorf("not refused: %+v, want %s of %s", a, why, path)
		}
		m.told([]refusal{{l.program, path, why}})
	}

	before := l.load(t, l.kind, filepath.Join(m.src, "plain"), m.at("plain"))
	plain := before[0][l.kind]
	if plain.Value == "" {
		t.Fatalf("%+v, on the plain directory", plain)
	}
	refused(before[1], "plain/"+l.first, ReasonNoCapability)

	for name, data := range l.grants {
		m.grant(name, data)
	}
	after := l.load(t, l.kind, dirs...)
	if a := after[0][l.kind]; a != plain {
		t.Errorf("%+v, and on the plain directory %+v", a, plain)
	}
	for i, a := range l.attacks {
		refused(after[i+1], a.name+"/"+a.at, a.why)
	}
}

func (m *mounted) lay(dir string, files map[string][]byte, links map[string]string) {
	m.t.Helper()
	for name, data := range files {
		if data != nil {
			m.write(dir+"/"+name, data)
		}
	}
	for name, target := range links {
		p := filepath.Join(m.src, dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			m.t.Fatal(err)
		}
		if err := os.Symlink(target, p); err != nil {
			m.t.Fatal(err)
		}
	}
}

// huggingFace is a cache as huggingface_hub keeps it: a revision is a directory
// of links to contents. A large one is called by its SHA-256, a small one by its
// git blob id.
//
// BUG: a content that came by Xet lies under its Xet hash in blobs of all models,
// to which the blob is a link. That is refused: it looks like a link to another
// SHA-256.
func huggingFace(models map[string][]byte) layout {
	const snapshot, blobs = "models--acme--tiny/snapshots/0123abc/", "models--acme--tiny/blobs/"
	xet := sumOf([]byte("a hash of another kind"))
	weights, config, other := models["model.safetensors"], models["config.json"], models["model-00001-of-00002.safetensors"]
	git := func(data []byte) string {
		id := sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", len(data), data))
		return blobs + hex.EncodeToString(id[:])
	}
	small := []byte("approved under another name")
	return layout{
		kind: "hugging face", load: python, program: "python3",
		files: map[string][]byte{
			"models--acme--tiny/refs/main": []byte("0123abc"),
			blobs + sumOf(weights):         weights,
			git(config):                    config,
			git(small):                     small,
			blobs + sumOf(other):           other,
		},
		links: map[string]string{
			snapshot + "model.safetensors": "../../blobs/" + sumOf(weights),
			snapshot + "config.json":       "../../blobs/" + filepath.Base(git(config)),
		},
		grants: map[string][]byte{"model.safetensors": weights, "config.json": config, "other.safetensors": other, "other.json": small},
		first:  git(config),
		attacks: []attack{
			{name: "tampered", files: map[string][]byte{blobs + sumOf(weights): flipped(weights)}, at: blobs + sumOf(weights), why: ReasonWrongBytes},
			{name: "link to another approved file", links: map[string]string{snapshot + "model.safetensors": "../../blobs/" + sumOf(other)},
				at: snapshot + "model.safetensors", why: ReasonWrongName},
			{name: "config tampered", files: map[string][]byte{git(config): flipped(config)}, at: snapshot + "config.json", why: ReasonWrongName},
			{name: "config exchanged", files: map[string][]byte{git(config): small}, at: snapshot + "config.json", why: ReasonWrongName},
			{name: "link to another approved config", links: map[string]string{snapshot + "config.json": "../../blobs/" + filepath.Base(git(small))},
				at: snapshot + "config.json", why: ReasonWrongName},
			{name: "config called by another's id", files: map[string][]byte{git(small): config},
				links: map[string]string{snapshot + "config.json": "../../blobs/" + filepath.Base(git(small))}, at: snapshot + "config.json", why: ReasonWrongName},
			{name: "shared by Xet", files: map[string][]byte{blobs + sumOf(weights): nil, "blobs/5f/" + xet: weights},
				links: map[string]string{blobs + sumOf(weights): "../../blobs/5f/" + xet},
				at:    blobs + sumOf(weights), why: ReasonWrongName},
		},
	}
}

// ollama is a store of Ollama: a tag is a file that names contents.
func ollama(models map[string][]byte) layout {
	const tag, blobs = "store/manifests/models.example/library/tiny/latest", "store/blobs/sha256-"
	weights := models["tiny.gguf"]
	other := sample(1, len(weights))
	manifest := func(data []byte) []byte {
		return fmt.Appendf(nil, `{"schemaVersion":2,"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:%s","size":%d}]}`, sumOf(data), len(data))
	}
	return layout{
		kind: "ollama", load: javascript, program: "node",
		files:  map[string][]byte{tag: manifest(weights), blobs + sumOf(weights): weights, blobs + sumOf(other): other},
		grants: map[string][]byte{"library/tiny/latest": manifest(weights), "tiny.gguf": weights, "other.gguf": other},
		first:  tag,
		attacks: []attack{
			{name: "tampered", files: map[string][]byte{blobs + sumOf(weights): flipped(weights)}, at: blobs + sumOf(weights), why: ReasonWrongBytes},
			{name: "tag of another approved file", files: map[string][]byte{tag: manifest(other)}, at: tag, why: ReasonWrongBytes},
		},
	}
}

// triton is a model repository of Triton: the highest version is served.
func triton(models map[string][]byte) layout {
	const model, config = "repository/tiny/2/model.onnx", "repository/tiny/config.pbtxt"
	old := sample(1, len(models["model.onnx"]))
	return layout{
		kind: "triton", load: javascript, program: "node",
		files:  map[string][]byte{model: models["model.onnx"], config: models["config.pbtxt"], "repository/tiny/1/model.onnx": old},
		grants: map[string][]byte{"tiny/2/model.onnx": models["model.onnx"], "tiny/config.pbtxt": models["config.pbtxt"], "tiny/1/model.onnx": old},
		first:  config,
		attacks: []attack{
			{name: "tampered", files: map[string][]byte{model: flipped(models["model.onnx"])}, at: model, why: ReasonWrongBytes},
			{name: "old version as a new one", files: map[string][]byte{"repository/tiny/3/model.onnx": old}, at: "repository/tiny/3/model.onnx", why: ReasonWrongName},
		},
	}
}

// shards is a model in pieces with an index.
func shards(models map[string][]byte) layout {
	const index, first, second = "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
	files := map[string][]byte{index: models[index], first: models[first], second: models[second]}
	return layout{
		kind: "shards", load: python, program: "python3",
		files: files, grants: files, first: index,
		attacks: []attack{
			{name: "tampered", files: map[string][]byte{second: flipped(models[second])}, at: second, why: ReasonWrongBytes},
			{name: "exchanged", files: map[string][]byte{first: models[second], second: models[first]}, at: first, why: ReasonWrongName},
		},
	}
}
