using System.Collections.Concurrent;
using System.IO.Hashing;
using System.Text;

namespace Megatron.Compute.Native;

/// <summary>
/// The algorithms that measurements on one kind of GPU chose, in a text file of lines "shape algorithm" beside the compiled kernels: a later
/// process on the same machine chooses the same ones without measuring. A file that cannot be written or read costs a new measurement.
/// </summary>
internal sealed class MeasuredProducts
{
    private readonly ConcurrentDictionary<string, ProductAlgorithm> algorithms = new(StringComparer.Ordinal);
    private readonly string path;

    private MeasuredProducts(string path) => this.path = path;

    /// <summary>What earlier processes measured with this library on GPUs of this name.</summary>
    public static MeasuredProducts Load(string deviceName, nuint libraryVersion)
    {
        var key = Convert.ToHexStringLower(XxHash64.Hash(Encoding.UTF8.GetBytes($"{deviceName}|{libraryVersion}")));
        return Load(Path.Combine(CudaKernels.CacheFolder, $"products-{key}.txt"));
    }

    /// <summary>The same from a given file, which need not exist.</summary>
    public static MeasuredProducts Load(string path)
    {
        var result = new MeasuredProducts(path);
        try
        {
            foreach (var line in File.Exists(path) ? File.ReadLines(path) : [])
            {
                // A line cut short by a process that ended is passed over.
                if (line.Split(' ') is [var shape, var hex] && ProductAlgorithm.TryParse(hex, out var algorithm)) result.algorithms[shape] = algorithm;
            }
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            result.algorithms.Clear();
        }
        return result;
    }

    /// <summary>The choice for a shape, or null.</summary>
    public ProductAlgorithm? Find(in ProductShape representative) => algorithms.TryGetValue(representative.ToKey(), out var algorithm) ? algorithm : null;

    /// <summary>Keeps a choice, also on disk: one short append, so that processes that measure at a time do not disturb one another.</summary>
    public void Add(in ProductShape representative, ProductAlgorithm algorithm)
    {
        var key = representative.ToKey();
        if (!algorithms.TryAdd(key, algorithm)) return;
        try
        {
            Directory.CreateDirectory(Path.GetDirectoryName(path) ?? "/");
            File.AppendAllText(path, $"{key} {algorithm.ToHex()}\n");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // The next process measures again.
        }
    }
}
