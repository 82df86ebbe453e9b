using System.Globalization;
using CsCheck;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tests.Configuration;

public sealed class TrainingConfigTests
{
    [Fact]
    public void Options_PropertyName_IsPascalCaseOfOptionName()
    {
        foreach (var option in OptionCatalog.All)
        {
            var pascal = string.Concat(option.Name.Split('_').Select(part => char.ToUpperInvariant(part[0]) + part[1..]));
            Assert.Equal(pascal, option.PropertyName);
            Assert.EndsWith(".", option.Help);
        }
    }

    [Fact]
    public void Options_Sections_StandInDeclaredOrder()
    {
        var names = OptionCatalog.All.Select(option => option.Name).ToList();
        Assert.Equal("model", names[0]);
        Assert.True(names.IndexOf("lr") < names.IndexOf("min_lr"));
        Assert.True(names.IndexOf("seed") < names.IndexOf("num_workers"));
        Assert.Equal(names.Count, names.Distinct().Count());
    }

    [Fact]
    public void Defaults_OfTheReference_AreKept()
    {
        var config = new TrainingConfig();
        Assert.Equal(1, config.MicroBatchSize);
        Assert.Equal(16, config.GlobalBatchSize);
        Assert.Equal("selective", config.RecomputeGranularity);
        Assert.Equal(["core_attn"], config.RecomputeModules);
        Assert.Null(config.TrainIters);
        Assert.Equal(1e-5, config.Lr);
        Assert.Equal(0.95, config.AdamBeta2);
        Assert.Equal(500, config.SaveInterval);
        Assert.False(config.Finetune);
        Assert.True(config.AddVersion);
        Assert.Equal(0.01, config.SplitDatasetRatio);
        Assert.True(config.CalculatePerTokenLoss);
        Assert.Null(config.Fp16);
    }

    [Fact]
    public void ToJson_AllOptionsChanged_RoundTripsToEqualConfig()
    {
        Gen.Select(Gen.Double, Gen.Int, Gen.String, Gen.Bool).Sample((number, integer, text, flag) =>
        {
            var values = OptionCatalog.All.ToDictionary(option => option.Name, object? (option) => option.Kind switch
            {
                OptionKind.Flag => flag,
                OptionKind.Integer => integer,
                OptionKind.Number => number,
                OptionKind.Text => option.Choices.Count > 0 ? option.Choices[^1] : text,
                OptionKind.TextList => option.Choices.Count > 0 ? option.Choices.ToArray() : new[] { text, "b c" },
                OptionKind.NumberList => new[] { number, 0.1 },
                _ => "{\"a\":[1,2.50]}",
            });
            var config = OptionCatalog.With(new TrainingConfig(), values);
            var back = TrainingConfig.FromJson(config.ToJson());
            Assert.Equal(config, back);
            Assert.Equal(config.ToJson(), back.ToJson());
        }, iter: 50);
    }

    [Fact]
    public void Equality_ListsWithEqualContent_AreEqual()
    {
        var left = new TrainingConfig { Dataset = ["a.jsonl", "b.jsonl"] };
        var right = new TrainingConfig { Dataset = new List<string> { "a.jsonl", "b.jsonl" } };
        Assert.Equal(left, right);
        Assert.Equal(left.GetHashCode(), right.GetHashCode());
        Assert.NotEqual(left, right with { Lr = 2e-5 });
    }

    [Fact]
    public void ToJson_GermanCulture_IsInvariant()
    {
        var culture = CultureInfo.CurrentCulture;
        try
        {
            CultureInfo.CurrentCulture = CultureInfo.GetCultureInfo("de-DE");
            var json = new TrainingConfig { Lr = 1.5e-3 }.ToJson();
            Assert.Contains("\"lr\": 0.0015,", json, StringComparison.Ordinal);
            Assert.Equal(0.0015, TrainingConfig.FromJson(json).Lr);
        }
        finally
        {
            CultureInfo.CurrentCulture = culture;
        }
    }

    [Fact]
    public void FromJson_SeveralMistakes_AllAreListed()
    {
        var failure = Assert.Throws<ConfigException>(() =>
            TrainingConfig.FromJson("""{"lrr": 1, "micro_batch_size": "two", "optimizer": "adagrad", "strict": 7, "lr": null}"""));
        Assert.Equal(
            [
                "CFG001 --lrr is not an option; did you mean --lr?",
                "CFG003 --micro_batch_size = two cannot be read; give one whole number from -2147483648 to 2147483647.",
                "CFG003 --optimizer = adagrad is not known; choose adam or sgd.",
                "CFG003 --strict = 7 cannot be read; give true or false.",
                "CFG003 --lr = null cannot be read; give one number such as 0.1 or 1e-5.",
            ],
            failure.Errors.Select(error => error.ToString()));
    }

    [Theory]
    [InlineData("[1]", "CFG002 the configuration is a JSON Array; give an object such as {\"lr\": 1e-5}.")]
    [InlineData("{\n\"lr\": }", "CFG002 the configuration is not valid JSON in line 2; correct it there.")]
    [InlineData("", "CFG002 the configuration is not valid JSON in line 1; correct it there.")]
    public void FromJson_NoObject_IsRefused(string json, string message) =>
        Assert.Equal(message, Assert.Throws<ConfigException>(() => TrainingConfig.FromJson(json)).Message);

    [Theory]
    [InlineData("tensor-model-parallel-size", false, "tensor_model_parallel_size")]
    [InlineData("num_train_epochs", false, "max_epochs")]
    [InlineData("output_dir", true, "save")]
    [InlineData("output_dir", false, "output_dir")]
    [InlineData("mcore_model", true, "load")]
    [InlineData("logging-steps", true, "log_interval")]
    public void Find_AliasOrDashes_MeansTheOption(string given, bool trainingVerb, string expected) =>
        Assert.Equal(expected, OptionCatalog.Find(given, trainingVerb)?.Name);

    [Theory]
    [InlineData("tensor_model_paralel_size", "tensor_model_parallel_size")]
    [InlineData("datset", "dataset")]
    [InlineData("zzzzzzzzzz", null)]
    public void Suggest_Misspelt_NamesTheNearest(string given, string? expected) => Assert.Equal(expected, OptionCatalog.Suggest(given));
}
