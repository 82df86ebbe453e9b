using System.Diagnostics;
using System.Text;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Tokenization;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Checkpointing;

/// <summary>
/// More than two thousand corrupt files (reliability R21 and 7.5), made from sound checkpoints, weight folders and tokenizers: each is refused with a
/// typed code, in at most 100 ms and 64 MiB.
/// </summary>
public sealed partial class CorruptCorpusTests(ITestOutputHelper output)
{
    private const long BytesMax = 64 << 20;
    private static readonly TimeSpan timeMax = TimeSpan.FromMilliseconds(100);

    private readonly Dictionary<string, int> codes = [];
    private int count;
    private (TimeSpan Time, string Title) slowest;
    private (long Bytes, string Title) largest;

    [Fact]
    public void EveryFile_OfTheCorpus_IsRefusedWithItsCodeInTimeAndMemory()
    {
        var seed = Environment.TickCount;
        output.WriteLine($"seed {seed}");
        var random = new Random(seed);
        using var folder = new TemporaryFolder();
        Refuse("warm-up", null, () => SafetensorsFile.Open(folder.Combine("nothing")), isCounted: false);

        WeightFiles(folder);
        for (var sample = 0; sample < 3; sample++) Checkpoints(folder.Combine($"run{sample}"), sample, random);
        Indexes(folder.Combine("index"));
        Tokenizers(folder.Combine("tokenizer"));

        output.WriteLine($"{count} corrupt files refused: {string.Join(", ", codes.OrderBy(pair => pair.Key, StringComparer.Ordinal).Select(pair => $"{pair.Value} {pair.Key}"))}");
        output.WriteLine(FormattableString.Invariant($"slowest {slowest.Time.TotalMilliseconds:F1} ms ({slowest.Title}), most memory {largest.Bytes / 1048576.0:F1} MiB ({largest.Title})"));
        Assert.True(count >= 2000, $"{count} files");
    }

    /// <summary>Each rule of the safetensors format.</summary>
    private void WeightFiles(TemporaryFolder folder)
    {
        var path = folder.Combine("model.safetensors");
        foreach (var file in CorruptSafetensors.All())
        {
            File.WriteAllBytes(path, file.Bytes);
            Refuse(file.Title, file.Code, () => SafetensorsFile.Open(path, strict: true).Dispose());
        }
        File.Delete(path);
    }

    private void Checkpoints(string root, int sample, Random random)
    {
        var store = new CheckpointStore(root, TimeProvider.System);
        var older = CheckpointSample.Save(store, 10, ranks: sample + 1, seed: sample);
        var newest = CheckpointSample.Save(store, 20, ranks: sample + 1, seed: sample + 100);
        void Check(string title, string? code = null) => Refuse($"sample {sample}: {title}", code, () => CheckpointStore.Verify(newest.Folder, CheckpointVerification.Full));

        foreach (var name in newest.Manifest.Files.Select(file => file.Name).Append(CheckpointManifest.FileName))
        {
            var path = Path.Combine(newest.Folder, name);
            var sound = File.ReadAllBytes(path);
            foreach (var length in Cuts(sound)) Damage(path, sound, sound[..length], () => Check($"{name} cut after {length} bytes"));
            for (var i = 0; i < 40; i++)
            {
                var flipped = (byte[])sound.Clone();
                var bit = random.Next(sound.Length * 8);
                flipped[bit / 8] ^= (byte)(1 << (bit % 8));
                Damage(path, sound, flipped, () => Check($"{name} with bit {bit} flipped"));
            }
            Damage(path, sound, [.. sound, 0], () => Check($"{name} with a byte too many"));
            Damage(path, sound, File.ReadAllBytes(Path.Combine(older.Folder, name)) is var other && !other.AsSpan().SequenceEqual(sound) ? other : [], () => Check($"{name} of another step"));
            File.Delete(path);
            Check($"{name} missing", name == CheckpointManifest.FileName ? "CKPT010" : "CKPT020");
            File.CreateSymbolicLink(path, Path.Combine(older.Folder, name));
            Check($"{name} a link");
            File.Delete(path);
            Directory.CreateDirectory(path);
            Check($"{name} a folder");
            Directory.Delete(path);
            File.WriteAllBytes(path, sound);
        }
        foreach (var name in new[] { "extra.txt", "state/extra.safetensors", ".hidden", "model-00003-of-00003.safetensors", "pytorch_model.bin" })
        {
            File.WriteAllText(Path.Combine(newest.Folder, name), "x");
            Check($"extra file {name}", "CKPT020");
            File.Delete(Path.Combine(newest.Folder, name));
        }
        Manifests(Path.Combine(newest.Folder, CheckpointManifest.FileName), Check);
        Assert.NotNull(CheckpointStore.Verify(newest.Folder, CheckpointVerification.Full)); // all damage was undone
    }

    /// <summary>Every value of the manifest replaced by each of a few others, and sealed again.</summary>
    private static void Manifests(string path, Action<string, string?> check)
    {
        var sound = File.ReadAllBytes(path);
        var root = JsonNode.Parse(sound)?.AsObject() ?? throw new InvalidOperationException("no manifest");
        root.Remove("manifestHash");
        string[] places = ["formatVersion", "saveId", "run", "modelConfigHash", "files", "tensors", "state", "run.trainer", "run.layout", "run.attempt", "run.trainer.iteration", "files.0", "files.0.name", "files.0.sizeBytes", "files.0.xxHash128", "tensors.0", "tensors.0.shape", "tensors.0.dType", "tensors.0.file", "state.0", "state.0.file", "state.0.slices", "state.0.slices.0", "state.0.slices.0.begin", "state.0.slices.0.kind", "state.0.slices.0.offset"];
        string[] values = ["-1", "1e400", "[[[]]]", "{\"a\":1}", "\"\\u0000\""];
        foreach (var place in places)
            foreach (var value in values)
            {
                var edited = root.DeepClone();
                var words = place.Split('.');
                JsonNode parent = edited;
                foreach (var word in words[..^1]) parent = (int.TryParse(word, out var index) ? parent[index] : parent[word]) ?? throw new InvalidOperationException(place);
                if (place == "saveId" && value.StartsWith('"')) continue; // any text is a name
                const string mark = "-- here --";
                if (int.TryParse(words[^1], out var last)) parent[last] = mark;
                else parent[words[^1]] = mark;
                var text = edited.ToJsonString().Replace($"\"{mark}\"", value, StringComparison.Ordinal);
                File.WriteAllBytes(path, CheckpointManifest.Seal(Encoding.UTF8.GetBytes(text)));
                check($"manifest with {place} = {value}", null);
            }
        File.WriteAllBytes(path, sound);
    }

    private void Indexes(string folder)
    {
        Directory.CreateDirectory(folder);
        File.WriteAllBytes(Path.Combine(folder, "1.safetensors"), CorruptSafetensors.Sound());
        var path = Path.Combine(folder, HfShardPlan.IndexFileName);
        void Check(string title) => Refuse(title, null, () => HfWeightFolder.Open(folder).Dispose());
        var sound = HfIndex.Write(24, [("a", "1.safetensors"), ("b", "1.safetensors")]);
        for (var length = 0; length < sound.Length - 1; length++)
        {
            if (sound[length..].AsSpan().IndexOfAnyExcept("\n "u8) < 0) continue;
            File.WriteAllBytes(path, sound[..length]);
            Check($"index cut after {length} bytes");
        }
        foreach (var file in new[] { "../1.safetensors", "/1.safetensors", "a/1.safetensors", "2.safetensors", "1.bin", "", ".", "..", "1.safetensors/", "C:\\\\1.safetensors", "\\u0000.safetensors" })
        {
            File.WriteAllText(path, $$$"""{"weight_map":{"a":"{{{file}}}","b":"1.safetensors"}}""");
            Check($"index naming {file}");
        }
        foreach (var map in new[] { "{}", "null", "[]", "1", "{\"a\":1}", "{\"a\":\"1.safetensors\"}", "{\"a\":\"1.safetensors\",\"b\":\"1.safetensors\",\"c\":\"1.safetensors\"}", "{\"a\":\"1.safetensors\",\"a\":\"1.safetensors\"}" })
        {
            File.WriteAllText(path, $$$"""{"weight_map":{{{map}}}}""");
            Check($"index with map {map}");
        }
    }

    private void Tokenizers(string folder)
    {
        Directory.CreateDirectory(folder);
        foreach (var file in Directory.GetFiles(Repository.Asset("tokenizers", "tiny"))) File.Copy(file, Path.Combine(folder, Path.GetFileName(file)));
        var path = Path.Combine(folder, "tokenizer.json");
        var sound = File.ReadAllBytes(path);
        for (var percent = 0; percent < 100; percent++) Damage(path, sound, sound[..(sound.Length * percent / 100)], () => Check($"tokenizer cut after {percent} %"));
        foreach (var value in new[] { "null", "[]", "{}", "{\"type\":\"Unigram\"}" })
        {
            var root = JsonNode.Parse(sound)?.AsObject() ?? throw new InvalidOperationException("no tokenizer");
            root["model"] = JsonNode.Parse(value);
            Damage(path, sound, Encoding.UTF8.GetBytes(root.ToJsonString()), () => Check($"tokenizer with model = {value}"));
        }

        void Check(string title) => Refuse(title, null, () => HfTokenizer.Load(folder));
    }

    /// <summary>Lengths at every hundredth, and around the borders of the structure.</summary>
    private static IEnumerable<int> Cuts(byte[] sound)
    {
        var lengths = new SortedSet<int>(Enumerable.Range(0, 100).Select(percent => sound.Length * percent / 100));
        var borders = new List<int> { 8, sound.Length };
        if (sound.Length > 8 && BitConverter.ToInt64(sound) is > 0 and < 1 << 20 and var header) borders.Add(8 + (int)header);
        foreach (var border in borders)
            for (var offset = -1; offset <= 1; offset++) lengths.Add(border + offset);
        return lengths.Where(length => length >= 0 && length < sound.Length);
    }

    private static void Damage(string path, byte[] sound, byte[] damaged, Action check)
    {
        File.WriteAllBytes(path, damaged);
        check();
        File.WriteAllBytes(path, sound);
    }

    private void Refuse(string title, string? code, Action open, bool isCounted = true)
    {
        // On a busy machine the time is that of the best of several.
        var (best, bytes, found) = (TimeSpan.MaxValue, 0L, "");
        for (var attempt = 0; attempt < 20 && best > timeMax; attempt++)
        {
            var (before, begin) = (GC.GetAllocatedBytesForCurrentThread(), Stopwatch.GetTimestamp());
            var exception = Assert.Throws<ConfigException>(open);
            var elapsed = Stopwatch.GetElapsedTime(begin);
            if (elapsed < best) best = elapsed;
            (bytes, found) = (GC.GetAllocatedBytesForCurrentThread() - before, exception.Errors[0].Code);
            Assert.Matches(Code(), found);
            Assert.True(code is null || exception.Errors.All(error => error.Code == code), $"{title}: {exception.Message} instead of {code}");
        }
        if (!isCounted) return;
        Assert.True(best <= timeMax, $"{title} took {best.TotalMilliseconds} ms");
        Assert.True(bytes <= BytesMax, $"{title} took {bytes} bytes");
        codes[found] = codes.GetValueOrDefault(found) + 1;
        count++;
        if (best > slowest.Time) slowest = (best, title);
        if (bytes > largest.Bytes) largest = (bytes, title);
    }

    [GeneratedRegex(@"^(ST|CKPT|MODEL|TOK)\d{3}$", RegexOptions.CultureInvariant)]
    private static partial Regex Code();
}
