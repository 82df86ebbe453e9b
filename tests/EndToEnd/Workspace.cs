using System.Text.Json;
using Megatron.Client.Cli;
using Megatron.Testing;

namespace Megatron.EndToEnd.Tests;

/// <summary>A folder with a small model and data, and the commands that the tests give most.</summary>
internal sealed class Workspace : IDisposable
{
    private readonly TemporaryFolder folder = new();

    public Workspace(int rows = 200, int layers = 2, int hidden = 64)
    {
        TinyModelFolder.Create(Model, layers, hidden);
        TinyModelFolder.WriteRows(Rows, rows);
    }

    public string Root => folder.Root;

    public string Model => folder.Combine("model");

    public string Rows => folder.Combine("rows.jsonl");

    public string Path(params string[] parts) => folder.Combine(parts);

    /// <summary>Options that a training of this workspace needs; further words override them.</summary>
    public string[] Training(string save, params string[] more) =>
    [
        "sft", "--model", Model, "--dataset", Rows, "--save", Path(save), "--global_batch_size", "8", "--micro_batch_size", "4", "--lr", "1e-3",
        "--log_interval", "1", "--eval_iters", "0", "--split_dataset_ratio", "0", .. more,
    ];

    /// <summary>Trains and expects success.</summary>
    public async Task<CommandResult> TrainAsync(string save, params string[] more) => (await CommandLine.RunAsync(Training(save, more))).Expect(ExitCode.Ok);

    public void Dispose() => folder.Dispose();
}

/// <summary>Reads what runs leave behind.</summary>
internal static class RunFiles
{
    /// <summary>Rows of logging.jsonl that have a key.</summary>
    public static IReadOnlyList<JsonElement> Log(string runFolder, string key) =>
        [.. File.ReadLines(System.IO.Path.Combine(runFolder, "logging.jsonl")).Select(line => JsonSerializer.Deserialize<JsonElement>(line))
            .Where(row => row.TryGetProperty(key, out _))];

    /// <summary>The losses of logging.jsonl: one per iteration with log_interval 1.</summary>
    public static double[] Losses(string runFolder) => [.. Log(runFolder, "lm loss").Select(row => row.GetProperty("lm loss").GetDouble())];

    /// <summary>Every file of a folder and its bytes.</summary>
    public static SortedDictionary<string, byte[]> Bytes(string folder)
    {
        var files = new SortedDictionary<string, byte[]>(StringComparer.Ordinal);
        foreach (var path in Directory.EnumerateFiles(folder, "*", SearchOption.AllDirectories))
            files.Add(System.IO.Path.GetRelativePath(folder, path), File.ReadAllBytes(path));
        return files;
    }

    /// <summary>Asserts that two folders hold the same files with the same bytes.</summary>
    public static void AssertSame(string expected, string actual, params string[] except)
    {
        var (left, right) = (Bytes(expected), Bytes(actual));
        foreach (var name in except)
        {
            left.Remove(name);
            right.Remove(name);
        }
        Assert.Equal(left.Keys, right.Keys);
        foreach (var (name, bytes) in left) Assert.True(bytes.AsSpan().SequenceEqual(right[name]), $"{name} differs between {expected} and {actual}");
    }
}
