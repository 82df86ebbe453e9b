using Megatron.Client.Cli;
using Megatron.Compute.Checkpointing;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.EndToEnd.Tests;

/// <summary>Training on several ranks from the command line: the ranks are threads of this process.</summary>
public sealed class MultiRankTests(MultiRankTests.OneRank reference, MultiRankTests.OneRankWithExperts experts)
    : IClassFixture<MultiRankTests.OneRank>, IClassFixture<MultiRankTests.OneRankWithExperts>
{
    [Fact]
    public async Task Sft_Tensor2Pipeline2_ExportsTheModelOfOneRank()
    {
        await reference.TrainAsync("four", ranks: 4, "--tensor_model_parallel_size", "2", "--pipeline_model_parallel_size", "2", "--sequence_parallel", "true");
        AssertClose(reference.Exported, await reference.ExportAsync("four"), 1e-3);
        Assert.Contains(Differences(reference.Model, reference.Exported), pair => pair.Difference > 1e-2); // training has moved the weights
    }

    [Fact]
    public async Task Sft_ResumedInAnotherLayout_EndsAsOneRankDoes()
    {
        await reference.TrainAsync(
            "half", ranks: 4, "--train_iters", "2", "--lr_decay_iters", "4", "--pipeline_model_parallel_size", "2", "--virtual_pipeline_model_parallel_size", "2");
        await reference.TrainAsync("rest", ranks: 2, "--pipeline_model_parallel_size", "2", "--pipeline_schedule", "zero_bubble", "--load", reference.RunFolder("half"));
        AssertClose(reference.Exported, await reference.ExportAsync("rest"), 1e-3);
    }

    // The sharded optimizer's state lies on the ranks that share a sample, and is read by a rank that has it whole.
    [Fact]
    public async Task Sft_ContextParallelThenOneRank_EndsAsOneRankDoes()
    {
        await reference.TrainAsync("context", ranks: 2, "--train_iters", "2", "--lr_decay_iters", "4", "--context_parallel_size", "2");
        await reference.TrainAsync("context-rest", ranks: 1, "--load", reference.RunFolder("context"));
        AssertClose(reference.Exported, await reference.ExportAsync("context-rest"), 1e-3);
    }

    [Fact]
    public async Task Sft_ExpertsOverTensorAndExpertRanks_ExportsTheModelOfOneRank()
    {
        await experts.TrainAsync(
            "four", ranks: 4, "--tensor_model_parallel_size", "2", "--sequence_parallel", "true", "--expert_model_parallel_size", "2");
        AssertClose(experts.Exported, await experts.ExportAsync("four"), 1e-3);
        Assert.Contains(Differences(experts.Model, experts.Exported), pair => pair.Name.Contains(".experts.7.", StringComparison.Ordinal) && pair.Difference > 1e-2);
    }

    [Fact]
    public async Task Sft_ExpertsResumedInAnotherLayout_EndsAsOneRankDoes()
    {
        await experts.TrainAsync(
            "half", ranks: 4, "--train_iters", "2", "--lr_decay_iters", "4", "--expert_model_parallel_size", "2", "--tensor_model_parallel_size", "2");
        await experts.TrainAsync(
            "rest", ranks: 4, "--expert_model_parallel_size", "2", "--pipeline_model_parallel_size", "2", "--load", experts.RunFolder("half"));
        AssertClose(experts.Exported, await experts.ExportAsync("rest"), 1e-3);
    }

    /// <summary>The same for a model with experts and a vocabulary that is a prime.</summary>
    public sealed class OneRankWithExperts : OneRank
    {
        protected override void CreateModel() => TinyModelFolder.CreateWithExperts(Model, layers: 2, hidden: 32);
    }

    /// <summary>A model, data, and the run of one rank that the others are compared with.</summary>
    public class OneRank : IAsyncLifetime
    {
        private readonly TemporaryFolder folder = new();

        public string Model => folder.Combine("model");

        /// <summary>The trained model as a Hugging Face folder.</summary>
        public string Exported { get; private set; } = "";

        public string RunFolder(string run) => folder.Combine(run);

        public async ValueTask InitializeAsync()
        {
            CreateModel();
            TinyModelFolder.WriteRows(folder.Combine("rows.jsonl"), 40);
            await TrainAsync("one", ranks: 1);
            Exported = await ExportAsync("one");
        }

        public ValueTask DisposeAsync()
        {
            GC.SuppressFinalize(this);
            folder.Dispose();
            return ValueTask.CompletedTask;
        }

        protected virtual void CreateModel() => TinyModelFolder.Create(Model, layers: 4, hidden: 32);

        /// <summary>Four iterations, unless the options say otherwise.</summary>
        public async Task TrainAsync(string run, int ranks, params string[] options)
        {
            string[] common =
            [
                "--model", Model, "--dataset", folder.Combine("rows.jsonl"), "--save", RunFolder(run), "--add_version", "false",
                "--micro_batch_size", "1", "--global_batch_size", "8", "--lr", "1e-3", "--lr_warmup_iters", "0", "--max_length", "128",
                "--eval_iters", "1", "--split_dataset_ratio", "0.2", "--save_interval", "4", "--train_iters", "4",
            ];
            var kept = common.Chunk(2).Where(pair => !options.Contains(pair[0])).SelectMany(pair => pair);
            Assert.Equal((0, ""), await RunAsync(ranks, ["sft", .. kept, .. options]));
        }

        public async Task<string> ExportAsync(string run)
        {
            var output = folder.Combine(run + "-hf");
            Assert.Equal((0, ""), await RunAsync(1, "export", "--to_hf", "true", "--mcore_model", RunFolder(run), "--output_dir", output));
            return output;
        }
    }

    private static async Task<(int Code, string Error)> RunAsync(int ranks, params string[] arguments)
    {
        using var output = new StringWriter();
        using var error = new StringWriter();
        var cli = new MegatronCli(new CommandConsole(output, error), name => name == "NPROC_PER_NODE" ? $"{ranks}" : null, TimeProvider.System);
        var code = await cli.RunAsync(arguments, TestContext.Current.CancellationToken);
        TestContext.Current.TestOutputHelper?.WriteLine(output.ToString());
        return (code, error.ToString());
    }

    private static void AssertClose(string expected, string actual, double tolerance) =>
        Assert.All(Differences(expected, actual), pair => Assert.True(pair.Difference <= tolerance, $"{pair.Name}: {pair.Difference:E2}"));

    private static List<(string Name, double Difference)> Differences(string expectedFolder, string actualFolder)
    {
        using var scope = NewDisposeScope();
        using var expected = SafetensorsFile.Open(Path.Combine(expectedFolder, "model.safetensors"));
        using var actual = SafetensorsFile.Open(Path.Combine(actualFolder, "model.safetensors"));
        Assert.Equal(expected.Tensors.Keys.Order(), actual.Tensors.Keys.Order());
        return [.. expected.Tensors.Keys.Select(name =>
        {
            var (wanted, found) = (expected.ReadTensor(name).to_type(float64), actual.ReadTensor(name).to_type(float64));
            return (name, (found - wanted).norm().item<double>() / wanted.norm().item<double>());
        })];
    }
}
