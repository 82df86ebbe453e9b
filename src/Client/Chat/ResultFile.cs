using System.Globalization;
using System.Text.Encodings.Web;
using System.Text.Json;
using Megatron.Compute.Configuration;
using Megatron.Compute.Tokenization;

namespace Megatron.Client.Chat;

/// <summary>
/// The answers as JSON lines: <c>response</c>, <c>labels</c> (batch only), <c>logprobs</c>, <c>messages</c> with the answer at the end. Made
/// with its first line, appended to afterwards.
/// </summary>
public sealed class ResultFile : IDisposable
{
    private static readonly JsonWriterOptions Options = new() { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    private FileStream? file;

    /// <summary>Absolute path.</summary>
    public string Path { get; }

    /// <param name="path">Value of <c>--result_path</c>; null chooses a name by time.</param>
    /// <param name="model">Folder that the user named: results lie in it when it is ours (has an args.json), else below the working folder.</param>
    /// <param name="time">Source of the name.</param>
    public ResultFile(string? path, string model, TimeProvider time)
    {
        var name = time.GetLocalNow().ToString("yyyyMMdd-HHmmss", CultureInfo.InvariantCulture) + ".jsonl";
        var root = File.Exists(System.IO.Path.Combine(model, ArgsFile.FileName))
            ? model
            : System.IO.Path.Combine("result", System.IO.Path.GetFileName(System.IO.Path.TrimEndingDirectorySeparator(model)));
        Path = System.IO.Path.GetFullPath(path ?? System.IO.Path.Combine(root, "infer_result", name));
    }

    /// <summary>Appends one line.</summary>
    /// <param name="conversation">What was asked.</param>
    /// <param name="response">The answer.</param>
    /// <param name="labels">What was expected; null leaves the key out (interactive).</param>
    /// <param name="isBatch">Write labels and logprobs.</param>
    /// <exception cref="ConfigException">DISK001: the file cannot be made or written.</exception>
    public void Write(Conversation conversation, string response, string? labels, bool isBatch)
    {
        try
        {
            Directory.CreateDirectory(System.IO.Path.GetDirectoryName(Path) ?? ".");
            file ??= new FileStream(Path, FileMode.Append, FileAccess.Write, FileShare.Read);
            using (var json = new Utf8JsonWriter(file, Options)) WriteLine(json, conversation, response, labels, isBatch);
            file.WriteByte((byte)'\n');
            file.Flush();
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new ConfigException("DISK001", $"The result file {Path} cannot be written ({e.Message.TrimEnd('.')}); give another --result_path.");
        }
    }

    /// <inheritdoc/>
    public void Dispose() => file?.Dispose();

    private static void WriteLine(Utf8JsonWriter json, Conversation conversation, string response, string? labels, bool isBatch)
    {
        json.WriteStartObject();
        json.WriteString("response"u8, response);
        if (isBatch)
        {
            json.WriteString("labels"u8, labels);
            json.WriteNull("logprobs"u8);
        }
        json.WriteStartArray("messages"u8);
        if (conversation.System is { } system) WriteMessage(json, new ChatMessage(ChatMessage.SystemRole, system));
        foreach (var message in conversation.Messages) WriteMessage(json, message);
        WriteMessage(json, new ChatMessage(ChatMessage.Assistant, response));
        json.WriteEndArray();
        if (!isBatch)
        {
            foreach (var name in (string[])["images", "audios", "videos"])
            {
                json.WriteStartArray(name);
                json.WriteEndArray();
            }
        }
        json.WriteEndObject();
    }

    private static void WriteMessage(Utf8JsonWriter json, ChatMessage message)
    {
        json.WriteStartObject();
        json.WriteString("role"u8, message.Role);
        json.WriteString("content"u8, message.Content);
        json.WriteEndObject();
    }
}
