using System.Globalization;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing;

/// <summary>One weight file of a Hugging Face folder: its name and the tensors in it, in file order.</summary>
public sealed record HfShard(string FileName, IReadOnlyList<SafetensorsSpec> Tensors);

/// <summary>
/// How the tensors of a model are cut into weight files: in the order given, a new file when the next tensor would pass the limit. A pure
/// function, so that all ranks of a run agree on it without talking.
/// </summary>
public sealed class HfShardPlan
{
    /// <summary>Name of the only weight file.</summary>
    public const string SingleFileName = "model.safetensors";

    /// <summary>Name of the index of several weight files.</summary>
    public const string IndexFileName = "model.safetensors.index.json";

    /// <summary>The files, at least one.</summary>
    public IReadOnlyList<HfShard> Shards { get; }

    /// <summary>Bytes of all tensors.</summary>
    public long TotalBytes { get; }

    /// <summary>True when an index is needed.</summary>
    public bool IsSharded => Shards.Count > 1;

    private HfShardPlan(IReadOnlyList<HfShard> shards, long totalBytes) => (Shards, TotalBytes) = (shards, totalBytes);

    /// <summary>Plans the files.</summary>
    /// <param name="tensors">All tensors; the order is kept.</param>
    /// <param name="shardBytesMax">Most tensor bytes in a file; a single larger tensor gets a file of its own.</param>
    public static HfShardPlan Make(IReadOnlyList<SafetensorsSpec> tensors, long shardBytesMax)
    {
        var groups = new List<List<SafetensorsSpec>> { new() };
        var size = 0L;
        foreach (var tensor in tensors)
        {
            if (groups[^1].Count > 0 && size + tensor.SizeBytes > shardBytesMax)
            {
                groups.Add([]);
                size = 0;
            }
            groups[^1].Add(tensor);
            size += tensor.SizeBytes;
        }
        var shards = groups.Select((group, index) => new HfShard(FileName(index, groups.Count), group)).ToList();
        return new HfShardPlan(shards, tensors.Sum(tensor => tensor.SizeBytes));
    }

    /// <summary>The content of <see cref="IndexFileName"/>.</summary>
    public byte[] MakeIndex() => HfIndex.Write(TotalBytes, Shards.SelectMany(shard => shard.Tensors.Select(tensor => (tensor.Name, shard.FileName))));

    /// <summary>Parses a size such as <c>5GB</c>, <c>500MB</c>, <c>2GiB</c> or a number of bytes: GB is 10^9, GiB 2^30, as in Hugging Face's tools.</summary>
    /// <exception cref="ConfigException">CFG041: no size.</exception>
    public static long ParseSize(string text)
    {
        var trimmed = text.Trim();
        var digits = trimmed.AsSpan().IndexOfAnyExcept("0123456789.");
        var number = digits < 0 ? trimmed : trimmed[..digits];
        var factor = (digits < 0 ? "" : trimmed[digits..].Trim().ToUpperInvariant()) switch
        {
            "" or "B" => 1.0,
            "KB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "TB" => 1e12,
            "KIB" => 1L << 10,
            "MIB" => 1L << 20,
            "GIB" => 1L << 30,
            "TIB" => 1L << 40,
            _ => double.NaN,
        };
        if (double.TryParse(number, NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out var value) && value * factor is >= 1 and <= 1e18)
            return (long)(value * factor);
        throw new ConfigException("CFG041", $"max_shard_size = {Printable.Quote(text)} is no size; write for example 5GB, 500MB or 2GiB.");
    }

    private static string FileName(int index, int count) => count == 1
        ? SingleFileName
        : string.Create(CultureInfo.InvariantCulture, $"model-{index + 1:D5}-of-{count:D5}.safetensors");
}
