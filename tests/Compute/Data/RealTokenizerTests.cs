using Megatron.Compute.Data;
using Megatron.Compute.Tokenization;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Data;

/// <summary>From a file to batches with a tokenizer.json, so that the parts fit together and not only their test twins.</summary>
public sealed class RealTokenizerTests : IDisposable
{
    private readonly DataFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void Build_TinyTokenizer_LearnsAnswersAndDecodesToTheWholeConversation()
    {
        var tokenizer = HfTokenizer.Load(Repository.Asset("tokenizers", "tiny"));
        var rows = string.Join('\n', Enumerable.Range(0, 64).Select(i => $$"""{"query":"What is {{i}} plus {{i}}?","response":"It is {{2 * i}}. 好的"}"""));
        var config = DataFolder.Config(_folder.Write("rows.jsonl", rows)) with { SplitDatasetRatio = 0.1, GlobalBatchSize = 8, DatasetShuffle = false };

        var data = DatasetBuilder.Build(config, tokenizer, ChatTemplates.Get("qwen3"), tokenizer.VocabSize);

        Assert.Equal(58, data.TrainSamples.Count);
        Assert.Equal(6, data.ValidationSamples.Count);
        Assert.Equal("<|im_start|>user\nWhat is 3 plus 3?<|im_end|>\n<|im_start|>assistant\nIt is 6. 好的<|im_end|>\n",
            tokenizer.Decode(data.TrainSamples[3].TokenIds, skipSpecialTokens: false).TrimEnd('\n') + "\n");
        Assert.Contains("]It is 6. 好的<|im_end|>", SamplePrinter.LabelText(data.TrainSamples[3].Labels, tokenizer));

        var batch = data.CreateTrainSource(BatchLayout.SingleRankUnpadded(4) with { PadRowToMultiple = 128, PadTokenId = tokenizer.PadId ?? 0 }).Get(0);
        Assert.Equal(2, batch.MicroBatches.Count);
        Assert.All(batch.MicroBatches, row => Assert.Equal(0, row.NumTokens % 128));
        Assert.Equal(batch.NumTargetTokensGlobal, batch.MicroBatches.Sum(row => row.NumTargetTokens));
    }
}
