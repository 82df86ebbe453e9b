using Megatron.Compute.Native;
using Megatron.Compute.Tokenization;
using Microsoft.Win32.SafeHandles;
using static TorchSharp.torch;

namespace Megatron.Compute.Checkpointing;

/// <summary>A whole tensor to be exported.</summary>
/// <param name="Spec">Hugging Face name, dtype in the file and shape.</param>
/// <param name="Produce">Makes the tensor when its turn comes; the writer disposes it.</param>
public sealed record HfTensor(SafetensorsSpec Spec, Func<Tensor> Produce);

/// <summary>The files beside the weights of a Hugging Face folder; null leaves a file out.</summary>
public sealed record HfSideFiles
{
    /// <summary>Bytes of <c>config.json</c>: without it no loader opens the folder.</summary>
    public required byte[] Config { get; init; }

    /// <summary>Bytes of <c>generation_config.json</c>.</summary>
    public byte[]? GenerationConfig { get; init; }

    /// <summary>Bytes of <c>args.json</c>, the settings of the run.</summary>
    public byte[]? Args { get; init; }

    /// <summary>Folder from which tokenizer files are copied.</summary>
    public string? TokenizerFolder { get; init; }
}

/// <summary>
/// Writes a folder that transformers and vLLM load: weights, index, configuration, tokenizer and <c>args.json</c>. The bytes depend only on
/// the arguments; memory is bounded by one tensor; every file is synced.
/// </summary>
public static class HfFolderWriter
{
    private static readonly string[] tokenizerFiles =
    [
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
    ];

    /// <summary>Writes <c>model.safetensors</c>, or shards and their index.</summary>
    /// <param name="folder">An existing folder.</param>
    /// <param name="tensors">In file order; ordinal order of the names gives Hugging Face's own.</param>
    /// <param name="shardBytesMax">Most tensor bytes in a file, see <see cref="HfShardPlan.ParseSize"/>.</param>
    /// <returns>The files written, with lengths and hashes.</returns>
    /// <exception cref="IOException">The disk is full or failed.</exception>
    public static IReadOnlyList<CheckpointFile> WriteWeights(string folder, IReadOnlyList<HfTensor> tensors, long shardBytesMax)
    {
        var plan = HfShardPlan.Make([.. tensors.Select(tensor => tensor.Spec)], shardBytesMax);
        var written = new List<CheckpointFile>();
        var next = 0;
        foreach (var shard in plan.Shards)
        {
            using var writer = new SafetensorsWriter(Path.Combine(folder, shard.FileName), shard.Tensors, SafetensorsWriter.PyTorchFormat);
            for (var i = 0; i < shard.Tensors.Count; i++)
            {
                using var tensor = tensors[next++].Produce();
                writer.Write(tensor);
            }
            written.Add(writer.Finish());
        }
        if (plan.IsSharded) written.Add(WriteFile(folder, HfShardPlan.IndexFileName, plan.MakeIndex()));
        FileSync.FlushPath(folder);
        return written;
    }

    /// <summary>Writes configuration and <c>args.json</c>, and copies the tokenizer's files.</summary>
    /// <returns>The files written, with lengths and hashes.</returns>
    /// <exception cref="IOException">The disk is full or failed.</exception>
    public static IReadOnlyList<CheckpointFile> WriteSideFiles(string folder, HfSideFiles files)
    {
        var written = new List<CheckpointFile> { WriteFile(folder, "config.json", files.Config) };
        if (files.GenerationConfig is { } generation) written.Add(WriteFile(folder, "generation_config.json", generation));
        if (files.Args is { } args) written.Add(WriteFile(folder, "args.json", args));
        if (files.TokenizerFolder is { } source)
            foreach (var (name, content) in TokenizerContents(source))
                written.Add(WriteFile(folder, name, content));
        FileSync.FlushPath(folder);
        return written;
    }

    /// <summary>Names and contents of the files of a folder that belong to its tokenizer, in a fixed order; those ending in .gz unpacked.</summary>
    /// <exception cref="IOException">A file cannot be read.</exception>
    public static IEnumerable<(string Name, byte[] Content)> TokenizerContents(string folder)
    {
        var templates = Directory.EnumerateFiles(folder, "chat_template*").Select(path => Path.GetFileName(path)).Order(StringComparer.Ordinal);
        foreach (var name in tokenizerFiles.Concat(templates))
            if (TokenizerFiles.Content(folder, name) is { } content) yield return (name, content);
    }

    internal static CheckpointFile WriteFile(string folder, string name, ReadOnlySpan<byte> content)
    {
        var path = Path.Combine(folder, name);
        using SafeFileHandle handle = File.OpenHandle(path, FileMode.Create, FileAccess.Write);
        RandomAccess.Write(handle, content, 0);
        FileSync.Flush(handle, path);
        return new CheckpointFile(name, content.Length, Convert.ToHexStringLower(System.IO.Hashing.XxHash128.Hash(content)));
    }
}
