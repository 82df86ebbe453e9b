using System.Text.Json;
using Megatron.Client.Cli;
using Megatron.Client.Quickstart;
using Megatron.Compute.Models;
using Megatron.Compute.Tokenization;
using Megatron.Testing;

namespace Megatron.Client.Tests.Quickstart;

public sealed class QuickstartPlanTests
{
    [Fact]
    public void WriteModelFolder_Assets_AreAQwen3FolderWithItsTokenizer()
    {
        using var folder = new TemporaryFolder();
        var plan = new QuickstartPlan(QuickstartPlan.FindAssets(), folder.Root);
        plan.WriteModelFolder();
        var model = HfConfigReader.ReadFolder(plan.ModelFolder).Model;
        Assert.Equal("Qwen3ForCausalLM", model.Architecture);
        var tokenizer = HfTokenizer.Load(plan.ModelFolder);
        Assert.InRange(tokenizer.VocabSize, 1, model.VocabSize);
        Assert.Equal("qwen3", ChatTemplates.ForModel(model.Architecture, model.ModelType, "model", tokenizer).Name);
    }

    [Fact]
    public void SelfCognition_108Rows_BothLanguagesAndTheQuestion()
    {
        var path = Path.Combine(QuickstartPlan.FindAssets(), "data", "self-cognition.jsonl");
        var rows = File.ReadAllLines(path).Select(line => JsonSerializer.Deserialize<Dictionary<string, string>>(line) ?? []).ToList();
        Assert.Equal(108, rows.Count);
        Assert.All(rows, row => Assert.Equal(["query", "response", "tag"], row.Keys));
        Assert.Equal(54, rows.Count(row => row["tag"] == "zh"));
        Assert.Equal(54, rows.Count(row => row["tag"] == "en"));
        Assert.Equal(108, rows.Select(row => row["query"]).Distinct().Count());
        Assert.All(rows, row => Assert.Contains("{{NAME}}", row["response"], StringComparison.Ordinal));
        Assert.Contains(rows, row => row["response"].Contains("{{AUTHOR}}", StringComparison.Ordinal));
        Assert.Contains(rows, row => row["query"] == QuickstartPlan.Question);
    }

    [Fact]
    public void Steps_Arguments_AreVerbsAndOptionsOfTheConsole()
    {
        var plan = new QuickstartPlan("assets", "work");
        Assert.Equal(["pt", "sft", "export", "infer"], plan.Steps.Select(step => step.Arguments[0]));
        foreach (var step in plan.Steps)
        {
            var words = CommandGrammar.Cut(Verb.All.Single(verb => verb.Name == step.Arguments[0]), step.Arguments);
            Assert.Empty(OptionBinder.Read(words).Given.Errors);
        }
        Assert.Contains("--model_name swift-robot", plan.Steps[1].CommandLine, StringComparison.Ordinal);
        Assert.Contains("--system 'You are a helpful assistant.'", plan.Steps[1].CommandLine, StringComparison.Ordinal);
    }
}
