using Megatron.Compute.Checkpointing;
using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Parity.Tests;

/// <summary>
/// Models against published-code results (tests/assets/golden): logits, loss and every gradient of Hugging Face transformers in fp32.
/// The tolerances allow for another order of summation only.
/// </summary>
public sealed class GoldenTests
{
    private const double LogitsTolerance = 2e-4, LossTolerance = 1e-5, GradientTolerance = 1e-4;

    private const int GreedyPromptTokens = 16;

    public static TheoryData<string> DenseModels => ["qwen2.5-dense", "qwen3-dense", "llama3.1-dense"];

    [Theory, MemberData(nameof(DenseModels))]
    public void Logits_DenseModel_EqualHuggingFace(string name)
    {
        using var leaks = LeakCheck.Start();
        using var golden = new GoldenFolder(name);
        using var scope = NewDisposeScope();
        using var context = golden.Context(isTraining: false);
        using var saved = new Saved(context);
        var logits = golden.Model.ForwardLogits(null, saved);
        var expected = golden.Expected("logits").view(logits.shape);
        var error = (logits - expected).abs().max().item<float>() / expected.abs().max().item<float>();
        Assert.True(error <= LogitsTolerance, $"max|Δlogits| / max|logits| = {error}");
    }

    [Theory, MemberData(nameof(DenseModels))]
    public void LossAndGradients_DenseModel_EqualHuggingFace(string name)
    {
        using var leaks = LeakCheck.Start();
        using var golden = new GoldenFolder(name);
        using var gradients = TestModels.AttachGradients(golden.Model.Parameters);
        using var scope = NewDisposeScope();
        using var context = golden.Context(isTraining: true);
        using var saved = new Saved(context);
        var loss = golden.Model.ForwardStage(null, saved).item<float>() * context.LossFactor;
        Assert.Null(golden.Model.BackwardInput(null, saved));
        golden.Model.BackwardWeight(saved);
        Assert.Equal(0, saved.SizeBytes);

        var expected = golden.Expected("loss").item<float>();
        Assert.True(Math.Abs(loss - expected) <= LossTolerance * expected, $"loss {loss}, expected {expected}");
        var numCompared = 0;
        foreach (var parameter in golden.Model.Parameters)
            foreach (var block in parameter.Blocks)
            {
                var actual = parameter.MainGrad.view(-1).narrow(0, block.FlatOffset, block.NumElements).view(block.Shape);
                var reference = golden.Expected($"grad.{block.Name}");
                var error = (actual - reference).norm().item<float>() / reference.norm().item<float>();
                Assert.True(error <= GradientTolerance, $"{block.Name}: relative L2 {error}");
                numCompared++;
            }
        Assert.Equal(golden.NumWeights, numCompared);
    }

    [Theory, MemberData(nameof(DenseModels))]
    public void GreedyTokens_DenseModel_EqualHuggingFace(string name)
    {
        using var leaks = LeakCheck.Start();
        using var golden = new GoldenFolder(name);
        using var scope = NewDisposeScope();
        var expected = golden.Expected("greedy.ids").data<long>().ToArray();
        var tokens = golden.Expected("input_ids").data<long>().ToArray()[..GreedyPromptTokens].ToList();
        while (tokens.Count < expected.Length)
        {
            var row = TestBatches.FromUnshifted([[.. tokens]], [[.. tokens]]);
            using var context = new ForwardContext(row, CPU, step: 0, isTraining: false, lossFactor: 1, auxiliaryLossFactor: 1);
            using var saved = new Saved(context);
            tokens.Add(golden.Model.ForwardLogits(null, saved).narrow(0, tokens.Count - 1, 1).argmax().item<long>());
        }
        Assert.Equal(expected, tokens);
    }

    /// <summary>A golden folder with its model loaded in fp32 on one rank.</summary>
    private sealed class GoldenFolder : IDisposable
    {
        private readonly SafetensorsFile results;

        public GptModel Model { get; }

        public int NumWeights { get; }

        public GoldenFolder(string name)
        {
            var folder = Repository.Asset("golden", name);
            results = SafetensorsFile.Open(Path.Combine(folder, "golden.safetensors"));
            Model = TestModels.Whole(HfConfigReader.ReadFolder(folder).Model, TestModels.Options(ScalarType.Float32));
            using var weights = SafetensorsFile.Open(Path.Combine(folder, "model.safetensors"));
            NumWeights = weights.Tensors.Count;
            using var scope = NewDisposeScope();
            foreach (var parameter in Model.Parameters)
                foreach (var block in parameter.Blocks)
                    parameter.Data.view(-1).narrow(0, block.FlatOffset, block.NumElements).copy_(weights.ReadTensor(block.Name).view(-1));
        }

        public Tensor Expected(string tensorName) => results.ReadTensor(tensorName);

        public ForwardContext Context(bool isTraining)
        {
            var batch = TestBatches.FromUnshifted(Rows("input_ids"), Rows("labels"));
            return new ForwardContext(batch, CPU, step: 0, isTraining, lossFactor: 1.0 / batch.NumTargetTokens, auxiliaryLossFactor: 1);
        }

        public void Dispose()
        {
            Model.Dispose();
            results.Dispose();
        }

        private long[][] Rows(string tensorName)
        {
            using var matrix = results.ReadTensor(tensorName);
            return [.. matrix.data<long>().ToArray().Chunk((int)matrix.shape[1])];
        }
    }
}
