using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Tests.Data;

/// <summary>A temporary folder with data files, and the builder's call with the settings that most tests share.</summary>
public sealed class DataFolder : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("megatron-data-").FullName;

    /// <summary>One row that is fine.</summary>
    public const string GoodRow = """{"query":"hi","response":"yo"}""";

    public string Write(string name, string text) => Write(name, System.Text.Encoding.UTF8.GetBytes(text));

    public string Write(string name, byte[] bytes)
    {
        var path = Path.Combine(_folder, name);
        Directory.CreateDirectory(Path.GetDirectoryName(path) ?? _folder);
        File.WriteAllBytes(path, bytes);
        return path;
    }

    public string PathOf(string name) => Path.Combine(_folder, name);

    public static TrainingConfig Config(params string[] datasets) => new()
    {
        Dataset = datasets, SplitDatasetRatio = 0, GlobalBatchSize = 1, TrainIters = 1,
    };

    public static TrainData Build(TrainingConfig config) =>
        DatasetBuilder.Build(config, new TestTokenizer(), Template(config), new TestTokenizer().VocabSize);

    /// <summary>ChatML, or plain text.</summary>
    public static ChatTemplate Template(TrainingConfig config) => ChatTemplates.Get(config.UseChatTemplate ? "chatml" : "default");

    /// <summary>The training samples of one file, as decoded text, in file order.</summary>
    public static string[] Texts(TrainingConfig config) =>
        [.. Build(config with { DatasetShuffle = false }).TrainSamples.Select(sample => new TestTokenizer().Decode(sample.TokenIds, skipSpecialTokens: false))];

    public void Dispose() => Directory.Delete(_folder, recursive: true);
}
